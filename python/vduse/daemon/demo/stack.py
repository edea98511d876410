"""The whole stack in this process: framework, and for each image a device, attached to
virtio_vdpa."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.bus.disk import Disk
from vduse.bus.errors import VdpaError
from vduse.channel.embedded import EmbeddedControl
from vduse.daemon.commands import DemoOptions
from vduse.daemon.demo.counts import Counts
from vduse.daemon.demo.report import Bounce, DeviceFacts
from vduse.daemon.errors import UserError, image_error
from vduse.daemon.limits import check_open_files
from vduse.devices.local import local_blk
from vduse.framework import Framework

#: Bytes of one write-zeroes request.
_CLEAR_STEP = 64 << 20
#: Fds of the process and of each virtqueue, both sides together, rounded up.
_FDS = 64
_FDS_PER_QUEUE = 9
#: Bytes left on a file system that count as none.
_LITTLE_ROOM = 1 << 20


class Attached:
    """A disk on an image, while its device is attached."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.facts: DeviceFacts | None = None

    @property
    def driver(self) -> _native.BlkDriver:
        """For the load generator."""
        return self.disk.driver

    def file(self) -> io.BufferedIOBase:
        """The disk as a file; closing it flushes."""
        return self.disk.open("rb" if self.disk.read_only else "r+b", 1 << 20)

    def clear(self) -> None:
        """All bytes read as zero, and their storage is given back."""
        for offset in range(0, self.disk.size, _CLEAR_STEP):
            length = min(_CLEAR_STEP, self.disk.size - offset)
            self.disk.write_zeroes(offset, length, unmap=True)
        self.disk.flush()


class Stack:
    """A framework, and what has moved on its channels."""

    def __init__(self, options: DemoOptions) -> None:
        """UserError: the process may not open enough files."""
        check_open_files(_FDS + _FDS_PER_QUEUE * options.queues)
        self._options = options
        self._counts = Counts()
        self._exits = ExitStack()
        self._framework = self._exits.enter_context(Framework(tap=self._counts))
        self._control = EmbeddedControl(self._framework.control())
        self._exits.callback(self._control.close)

    def close(self) -> None:
        """Ends the framework."""
        self._exits.close()

    @contextmanager
    def attach(self, name: str, image: Path, *, read_only: bool = False) -> Iterator[Attached]:
        """A device on the image, bound to virtio_vdpa; at the end its bounce pages are
        reclaimed, the device is removed, the image flushed and closed, and ``facts`` is set."""
        options = self._options
        with storage_of(image), ExitStack() as exits:
            try:
                device = exits.enter_context(
                    local_blk(
                        self._control,
                        name,
                        f"file:{image}",
                        direct=options.direct,
                        queues=options.queues,
                        queue_size=options.queue_size,
                        packed=options.packed,
                        read_only=read_only,
                        destroy=True,
                    )
                )
            except BackendError as error:
                raise UserError(str(error)) from None
            vdpa = self._framework.dev_add(name)
            exits.callback(self._framework.dev_del, name)
            attached = Attached(self._framework.disk(name))
            yield attached
            bounce = _reclaim(vdpa.domain)
            stats = attached.disk.stats()
            size, engine = attached.disk.size, device.backend.engine
        attached.facts = DeviceFacts(
            name=name,
            image=str(image),
            size=size,
            read_only=read_only,
            ring="packed" if options.packed else "split",
            queues=options.queues,
            queue_size=options.queue_size,
            engine=engine,
            messages=self._counts.messages(name),
            calls=self._counts.calls(name),
            requests=stats["requests"],
            bytes_read=stats["bytes_read"],
            bytes_written=stats["bytes_written"],
            kicks=stats["kicks"],
            irqs=stats["irqs"],
            bounce=bounce,
        )


@contextmanager
def storage_of(image: Path) -> Iterator[None]:
    """A request that failed is the image's storage's affair: UserError."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO or isinstance(error, VdpaError):
            raise
        room = os.statvfs(image)
        full = room.f_bavail * room.f_frsize < _LITTLE_ROOM
        cause = OSError(errno.ENOSPC, "") if full else error
        raise image_error(str(image), cause) from error


def _reclaim(domain: _native.Domain) -> Bounce:
    before = domain.stats()
    reclaimed = domain.reclaim()
    after = domain.stats()
    return Bounce(
        peak=after["bounce_bytes_peak"],
        in_use=before["bounce_bytes_in_use"],
        reclaimed=reclaimed,
        allocated_after=after["bounce_bytes_allocated"],
    )
