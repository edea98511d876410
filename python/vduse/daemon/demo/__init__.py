"""`vduse demo`: real I/O on file system images, through the whole stack."""
