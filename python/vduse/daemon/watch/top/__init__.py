"""``vduse top``: what a daemon does now."""
