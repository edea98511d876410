"""`vduse storage-daemon`: disks for the kernel's VDUSE, with the interface of QEMU's
qemu-storage-daemon. See docs/storage-daemon.md."""
