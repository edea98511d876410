"""What the contract is tested on: a platform that plays the kernel's part, and device programs.

The tests know these protocols, `Channel`, `ControlPort` and `Driver`, and nothing behind them.
One more implementation is one more class of :class:`Platform` and a line in conftest.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from vduse.bus.driver import Driver
from vduse.channel.base import Channel, ControlPort

Where = Literal["process", "child"]


class Memory(Protocol):
    """Pages of a device program (mmap, private and anonymous)."""

    @property
    def address(self) -> int:
        """In the program's own address space."""

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...


class Node(Protocol):
    """A device node that a program has open."""

    @property
    def channel(self) -> Channel:
        """Without ``resolver`` where the program is another process."""

    def wait(self, timeout: float) -> bool:
        """Whether :meth:`Channel.receive` has something to say within ``timeout`` seconds;
        :meth:`interrupt` ends the wait."""

    def interrupt(self) -> None:
        """Ends a wait, and every later one until :meth:`clear_interrupt`."""

    def clear_interrupt(self) -> None:
        """After :meth:`interrupt`."""

    def ioctl(self, nr: int, payload: bytes, fd: int | None = None) -> bytes:
        """Any ioctl: the struct as written back. An fd of the answer is closed. OSError."""

    def write(self, data: bytes) -> None:
        """write(2) of whatever bytes. OSError where the platform can tell."""

    def read_region(self, start: int, length: int) -> bytes:
        """What the program reads at IOVAs it maps for itself."""

    def write_region(self, start: int, data: bytes) -> None:
        """The same, writing."""

    def allocated(self, iova: int) -> int:
        """Bytes that the file behind an IOVA really takes."""


class Program(Protocol):
    """A program that is to be a device: a process, or what stands for one."""

    @property
    def control(self) -> ControlPort:
        """Its open control node. `open` it with :meth:`open`."""

    def open(self, name: str) -> Node:
        """Opens a device node. OSError."""

    def control_ioctl(self, nr: int, payload: bytes) -> bytes:
        """Any ioctl on the control node."""

    def memory(self, size: int) -> Memory: ...
    def limit_locked_memory(self, size: int) -> None:
        """RLIMIT_MEMLOCK, bytes."""

    def end(self) -> None:
        """It is gone at once (SIGKILL), and the system has closed what it had open."""


class Disk(Protocol):
    """The block device that virtio-blk makes of a device under virtio_vdpa."""

    @property
    def size(self) -> int: ...
    def pread(self, length: int, offset: int) -> bytes: ...
    def pwrite(self, data: bytes, offset: int) -> int: ...
    def flush(self) -> None: ...
    def submit(self, batch: Sequence[tuple[str, int, Any]]) -> list[int]: ...
    def reap(self, minimum: int = 1, timeout: float | None = None) -> list[tuple[int, int]]: ...


class BlockProgram(Protocol):
    """A running device program that serves a virtio-blk device from a file or from memory."""

    def pause(self) -> None:
        """SIGSTOP; a device in this process cannot."""

    def resume(self) -> None:
        """SIGCONT."""

    def kill(self) -> None:
        """SIGKILL; a device in this process cannot."""

    def close(self) -> None:
        """Ends in order: it drains."""


class Platform(Protocol):
    """Whatever plays the kernel's part, with its management side."""

    @property
    def profile(self) -> str:
        """Which kernel: 6.12 or 7.2."""

    @property
    def where(self) -> Where:
        """Where device programs run."""

    @property
    def short_timeout(self) -> float:
        """The shortest msg_timeout there is, seconds."""

    @property
    def refuses_responses(self) -> bool:
        """A bad answer is an errno for its writer, as write(2) says."""

    @property
    def hears_every_ioctl(self) -> bool:
        """Also those on its nodes that are not VDUSE's, by their type."""

    def program(self) -> Program: ...
    def unprivileged_program(self) -> Program:
        """Of a user without capabilities; always a process of its own."""

    def block_program(
        self,
        name: str,
        backend: str = "memory",
        *,
        queues: int = 1,
        queue_size: int = 128,
        packed: bool = False,
    ) -> BlockProgram:
        """Creates the device, or takes it over. ``backend``: memory (64 MiB), or a file."""

    def control_mode(self) -> int:
        """Permission bits of the control node."""

    def dev_add(self, name: str, driver: str | None = None) -> None:
        """`vdpa dev add`, then binds a driver (None: none)."""

    def dev_del(self, name: str) -> None: ...
    def bind(self, name: str, driver: str) -> None:
        """In place of the driver that is bound."""

    def unbind(self, name: str) -> None: ...
    def driver(self, name: str) -> Driver:
        """Opens the device bound to vhost_vdpa."""

    def kill_opener(self, name: str, when: Callable[[], object]) -> None:
        """Somebody opens the device bound to vhost_vdpa, waits for its answer, and is killed as
        soon as ``when`` has returned, which runs on a thread of its own."""

    def disk(self, name: str) -> Disk:
        """Of the device bound to virtio_vdpa."""

    def attribute(self, name: str, attribute: str) -> float: ...
    def set_attribute(self, name: str, attribute: str, value: float) -> None:
        """/sys/class/vduse/NAME: msg_timeout (seconds), bounce_size (bytes)."""

    def reclaim(self) -> int:
        """Memory pressure, once: bytes given back."""

    def close(self) -> None:
        """Ends everything."""
