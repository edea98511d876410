"""An hour of everything at once, and whether anything grows: ``make soak``."""
