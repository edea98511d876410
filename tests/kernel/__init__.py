"""The test bed: Debian's kernels in QEMU with this machine's root inside, and tests that run there.

fetch.py gets a kernel, initramfs.py makes what mounts the root, vm.py runs a command in the guest,
vhost_user.py gives it disks that a program here serves;
plugin.py (this side) and reports.py (the guest's) make ordinary test results of tests run there.
"""
