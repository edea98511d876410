"""Objects: one file a type, with its options; types.py has them all."""
