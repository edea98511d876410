"""Block nodes: one file a driver, with its options and its node; graph.py has them by name."""
