"""A server of QMP, QEMU's machine protocol (docs/interop/qmp-spec in QEMU's tree): generic over a
table of commands; it knows nothing of disks."""
