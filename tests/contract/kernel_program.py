"""A device program on the kernel's channel, /dev/vduse."""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import ExitStack, suppress

from tests.contract.local_program import PAGE, LocalNode, LocalProgram
from vduse.channel.kernel import KernelControl
from vduse.devices.local import local_blk


class KernelNode(LocalNode):
    """With any ioctl."""

    def ioctl(self, nr: int, payload: bytes, fd: int | None = None) -> bytes:
        return _ioctl(self.channel.fileno(), nr, payload)

    def allocated(self, iova: int) -> int:
        """The kernel's file tells no blocks. What lies in a page that was never mapped is SIGBUS
        to its reader, EFAULT to write(2)."""
        entry, fd = self.channel.iotlb_get_fd(iova, iova)
        size = entry.last - entry.start + 1
        reader, writer = os.pipe()
        with mmap.mmap(fd, size, prot=mmap.PROT_READ, offset=entry.offset) as region:
            view = memoryview(region)
            found = 0
            for page in range(0, size, PAGE):
                with suppress(OSError):
                    found += os.write(writer, view[page : page + 1])
                    os.read(reader, 1)
            view.release()
        for each in (fd, reader, writer):
            os.close(each)
        return found * PAGE


class _Control(KernelControl):
    def ioctl(self, nr: int, payload: bytes) -> bytes:
        return _ioctl(self._node(), nr, payload)


class KernelProgram(LocalProgram):
    """It can be a real block device too."""

    def __init__(self) -> None:
        """OSError: no module, no permission."""
        super().__init__(_Control(), KernelNode)
        self._block = ExitStack()

    def serve_block(
        self, name: str, backend: str, queues: int, queue_size: int, packed: bool
    ) -> None:
        """As :meth:`tests.contract.ports.Platform.block_program`."""
        size = 64 << 20 if backend == "memory" else None
        device = local_blk(
            self.control,
            name,
            backend,
            size=size,
            queues=queues,
            queue_size=queue_size,
            packed=packed,
        )
        self._block.enter_context(device)

    def end_block(self) -> None:
        """In order: it drains."""
        self._block.close()


def _ioctl(fd: int, nr: int, payload: bytes) -> bytes:
    size = nr >> 16 & 0x3FFF
    argument = bytearray(payload.ljust(size, b"\0"))
    if not argument:
        fcntl.ioctl(fd, nr)
    else:
        fcntl.ioctl(fd, nr, argument, True)
    return bytes(argument)
