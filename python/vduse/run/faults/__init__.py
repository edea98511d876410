"""`vduse run --fault`: what a kernel does once a year, on demand, while a load runs."""
