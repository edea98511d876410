"""`vduse run`: other people's VDUSE daemons, unmodified, on the embedded framework."""
