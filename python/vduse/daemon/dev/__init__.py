"""`vduse dev`: devices on a vDPA bus, the kernel's or another program's."""
