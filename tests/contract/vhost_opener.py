"""A driver on the kernel's vhost-vdpa node in a process of its own: while it maps memory, the
kernel holds that process's memory map."""

from __future__ import annotations

from vduse.vdpa.vhost import VhostVdpaDriver


class VhostOpener:
    """What serves in that process."""

    #: The driver, once it is open.
    driver: VhostVdpaDriver

    def open(self, path: str) -> None:
        """As :class:`vduse.vdpa.vhost.VhostVdpaDriver`."""
        self.driver = VhostVdpaDriver(path)
