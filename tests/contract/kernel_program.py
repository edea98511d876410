"""A device program on the kernel's channel, /dev/vduse."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass

from tests.contract.local_program import PAGE, LocalNode, LocalProgram
from vduse.channel.base import Channel
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


@dataclass(frozen=True)
class BlockSpec:
    """As :meth:`tests.contract.ports.Platform.block_program` takes it."""

    name: str
    backend: str
    queues: int
    queue_size: int
    packed: bool


class KernelProgram(LocalProgram):
    """It can be a real block device too."""

    def __init__(
        self, *, records: str | None = None, node: Callable[[Channel, int], LocalNode] = KernelNode
    ) -> None:
        """``records``: as of :class:`vduse.channel.kernel.KernelControl`. OSError: no module, no
        permission."""
        super().__init__(_Control(records=records), node)
        self._block = ExitStack()

    def serve_block(self, spec: BlockSpec) -> None:
        """Once."""
        self._block.enter_context(self._block_device(spec))

    def end_block(self) -> None:
        """In order: it drains."""
        self._block.close()

    def _block_device(self, spec: BlockSpec) -> AbstractContextManager[object]:
        return local_blk(
            self.control,
            spec.name,
            spec.backend,
            size=64 << 20 if spec.backend == "memory" else None,
            queues=spec.queues,
            queue_size=spec.queue_size,
            packed=spec.packed,
        )


def _ioctl(fd: int, nr: int, payload: bytes) -> bytes:
    size = nr >> 16 & 0x3FFF
    argument = bytearray(payload.ljust(size, b"\0"))
    if not argument:
        fcntl.ioctl(fd, nr)
    else:
        fcntl.ioctl(fd, nr, argument, True)
    return bytes(argument)
