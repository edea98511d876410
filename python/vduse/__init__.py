"""vDPA devices in userspace: write a virtio device once, attach it anywhere."""
