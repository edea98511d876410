"""What a device's control path asks of its data path. `_native.BlkDataPath` is one."""

from __future__ import annotations

from typing import Protocol


class DataPath(Protocol):
    """All virtqueues of one device. Waits are bounded and release the GIL."""

    def inflight_size(self, size: int, features: int) -> int:
        """Bytes of the in-flight record of one virtqueue of ``size`` descriptors."""

    def start_queue(
        self,
        index: int,
        *,
        size: int,
        features: int,
        areas: tuple[int, int, int],
        state: tuple[int, ...],
        kickfd: int,
        callfd: int,
        inflight: tuple[int, int] | None,
    ) -> None:
        """Starts a virtqueue and looks at its ring at once. Takes dups of the fds; ``callfd``
        -1: irqs go through the channel. ``inflight``: (fd, offset) of its in-flight record.
        OSError EFAULT, EINVAL."""

    def stop_queue(self, index: int, timeout: float) -> tuple[int, ...] | None:
        """Takes nothing more, waits for what is in flight, returns where the queue stands;
        None if that took longer than ``timeout`` seconds."""

    def queue_running(self, index: int) -> bool:
        """Whether it was started and has not stopped."""

    def set_callfd(self, index: int, fd: int) -> None:
        """Later irqs of a running queue go to a dup of this fd."""

    def set_kickfd(self, index: int, fd: int) -> None:
        """A running queue is kicked by a dup of this fd."""

    def invalidate(self, start: int, last: int, timeout: float) -> bool:
        """Lets go of mappings in IOVAs [start, last]; true once every worker has."""

    def set_log(
        self, log: tuple[int, int, int] | None, used: dict[int, int], timeout: float
    ) -> bool:
        """Marks what is written into the driver's memory in ``log``: a memory file, of which it
        takes a dup, offset and bytes of the bits; None: nowhere. ``used``: see
        :class:`~vduse.control.abi.DirtyLog`. Until the next reset. True once every worker does.
        OSError EINVAL: no such log; ENOMEM."""

    def reset(self, timeout: float) -> bool:
        """Stops all queues; true once no request touches the driver's memory any more."""

    @property
    def on_worker(self) -> bool:
        """Whether the caller runs on a thread that serves the queues: it cannot wait for them."""

    @property
    def event_fd(self) -> int:
        """Readable when :meth:`events` has something (owned by the data path)."""

    def events(self) -> list[tuple[str, int, str]]:
        """``(kind, queue, message)``; kind ``broken``: all queues have stopped, because of
        what the driver or its memory did; ``failed``: a request ended with an error of the
        backend. Other kinds are for the log."""

    def close(self) -> None:
        """Frees everything; queues must be stopped or reset before."""
