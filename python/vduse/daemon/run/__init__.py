"""`vduse run`: the command."""
