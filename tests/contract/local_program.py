"""A device program in the process that makes it, but for what its channel is: see
embedded_program.py and kernel_program.py."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from vduse.channel.base import Channel, ControlPort

PAGE = mmap.PAGESIZE


class RawControl(ControlPort, Protocol):
    """With calls that the port does not have."""

    def ioctl(self, nr: int, payload: bytes) -> bytes:
        """Any ioctl."""


class LocalMemory:
    """Implements :class:`tests.contract.ports.Memory`."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data


class LocalNode(ABC):
    """Implements :class:`tests.contract.ports.Node`. Takes over ``stop``, an eventfd."""

    def __init__(self, channel: Channel, stop: int) -> None:
        self._channel = channel
        self._stop = stop

    @property
    def channel(self) -> Channel:
        return self._channel

    @abstractmethod
    def ioctl(self, nr: int, payload: bytes, fd: int | None = None) -> bytes: ...

    def wait(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        return {fd for fd, _ in poll.poll(timeout * 1000)} == {self._channel.fileno()}

    def interrupt(self) -> None:
        os.eventfd_write(self._stop, 1)

    def clear_interrupt(self) -> None:
        os.eventfd_read(self._stop)

    def write(self, data: bytes) -> None:
        os.write(self._channel.fileno(), data)

    def read_region(self, start: int, length: int) -> bytes:
        with self._map(start, length, mmap.PROT_READ) as (region, offset):
            return region[offset : offset + length]

    def write_region(self, start: int, data: bytes) -> None:
        with self._map(start, len(data), mmap.PROT_READ | mmap.PROT_WRITE) as (region, offset):
            region[offset : offset + len(data)] = data

    def allocated(self, iova: int) -> int:
        _, fd = self._channel.iotlb_get_fd(iova, iova)
        with open(fd, "rb") as file:
            return os.fstat(file.fileno()).st_blocks * 512

    def close(self) -> None:
        """Idempotent."""
        self._channel.close()
        if self._stop >= 0:
            os.close(self._stop)
            self._stop = -1

    def _map(self, start: int, length: int, protection: int) -> _Mapped:
        entry, fd = self._channel.iotlb_get_fd(start, start + length - 1)
        return _Mapped(fd, entry.offset + start - entry.start, length, protection)


class _Mapped:
    """Part of a file, mapped shared, as a context: the map, and where the part begins in it."""

    def __init__(self, fd: int, offset: int, length: int, protection: int) -> None:
        page = offset - offset % PAGE
        self._inner = offset - page
        size = self._inner + length
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, protection, offset=page)
        os.close(fd)

    def __enter__(self) -> tuple[mmap.mmap, int]:
        return self._map, self._inner

    def __exit__(self, *exception: object) -> None:
        self._map.close()


class LocalProgram:
    """Implements :class:`tests.contract.ports.Program`. Takes over the control port."""

    def __init__(self, control: RawControl, node: Callable[[Channel, int], LocalNode]) -> None:
        """``node``: of an open channel and an eventfd."""
        self._control = control
        self._node = node
        self._nodes: list[LocalNode] = []
        self._memories: list[LocalMemory] = []
        self._locked_memory = resource.getrlimit(resource.RLIMIT_MEMLOCK)

    @property
    def control(self) -> ControlPort:
        return self._control

    def open(self, name: str) -> LocalNode:
        return self.open_with(name, os.eventfd(0, os.EFD_CLOEXEC))

    def open_with(self, name: str, stop: int) -> LocalNode:
        """With an eventfd that ends waits, taken over."""
        try:
            node = self._node(self._control.open(name), stop)
        except BaseException:
            os.close(stop)
            raise
        self._nodes.append(node)
        return node

    def control_ioctl(self, nr: int, payload: bytes) -> bytes:
        return self._control.ioctl(nr, payload)

    def memory(self, size: int) -> LocalMemory:
        self._memories.append(LocalMemory(size))
        return self._memories[-1]

    def limit_locked_memory(self, size: int) -> None:
        _, hard = self._locked_memory
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, hard))

    def end(self) -> None:
        for node in self._nodes:
            node.close()
        self._nodes.clear()
        self._control.close()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, self._locked_memory)
