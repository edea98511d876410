"""`vduse blk`: a disk, served until a signal."""
