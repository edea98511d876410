"""Device programs in processes of their own, from a nursery (nursery.py)."""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from tests.contract.nursery import COMMAND, ROOT, TREE, Fd, Kept, receive, send
from vduse import _native
from vduse.channel.base import Channel, ControlPort
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    IotlbEntry,
    IovaInfo,
    IovaUmem,
    VqInfo,
)

_NOBODY = 65534


class Nursery:
    """Where children come from. One order at a time, from any thread."""

    def __init__(self, start: Callable[[socket.socket], None]) -> None:
        """``start`` starts a process that runs :data:`~tests.contract.nursery.COMMAND` in
        :data:`~tests.contract.nursery.TREE`, with this socket as its standard input. It ends when
        this object is closed."""
        self._ordering = threading.Lock()
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            start(theirs)

    def fork(self, kind: str, argument: Any, user: int) -> tuple[int, socket.socket]:
        """A child: its process number, and the socket of its calls."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._ordering:
            send(self._orders, (kind, argument, user, Fd(theirs.fileno())))
            answer = receive(self._orders)
        assert answer is not None, "the nursery is dead"
        (pid,), _ = answer
        return pid, ours

    def close(self) -> None:
        """No more children; those that are there live on."""
        self._orders.close()


@cache
def _nursery() -> Nursery:
    """Of programs that nobody watches; it ends with this process."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(orders: socket.socket) -> None:
        command = [sys.executable, "-c", COMMAND]
        processes.append(subprocess.Popen(command, stdin=orders, cwd=TREE))

    nursery = Nursery(start)

    def end() -> None:
        nursery.close()
        processes[0].wait()

    atexit.register(end)
    return nursery


class _Connection:
    """One connection; calls on it take turns."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def call(self, target: int, method: str, *arguments: Any) -> Any:
        with self._lock:
            try:
                send(self._sock, (target, method, *arguments))
                answer = receive(self._sock)
            except ConnectionError:
                answer = None
        if answer is None:
            raise ConnectionResetError("the program is dead")
        (ok, *parts), _ = answer
        if not ok:
            raise parts[0]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def close(self) -> None:
        self._sock.close()


class Child:
    """A process that serves calls on an object of its own."""

    def __init__(
        self, kind: str, argument: Any = None, *, user: int = 0, nursery: Nursery | None = None
    ) -> None:
        """``kind`` and ``argument``: what it is, and what that is made of; see nursery.py."""
        self.pid, calls = (nursery or _nursery()).fork(kind, argument, user)
        self._process = os.pidfd_open(self.pid)
        self.calls = _Connection(calls)
        #: It was ended.
        self.ended = False

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of that object."""
        return self.calls.call(ROOT, method, *arguments)

    def signal(self, number: int) -> None:
        """As kill(2)."""
        signal.pidfd_send_signal(self._process, number)

    def end(self) -> None:
        """SIGKILL; it is gone when this returns. Idempotent."""
        if not self.ended:
            self.ended = True
            self.signal(signal.SIGKILL)
            select.select([self._process], [], [])
            os.close(self._process)
            self.calls.close()


class ChildMemory:
    """Implements :class:`tests.contract.ports.Memory`."""

    def __init__(self, connection: _Connection, number: int) -> None:
        self._connection = connection
        self._number = number

    @property
    def address(self) -> int:
        address = self._connection.call(self._number, "address.__index__")
        assert isinstance(address, int)
        return address

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._connection.call(self._number, "read", offset, length))

    def write(self, offset: int, data: bytes) -> None:
        self._connection.call(self._number, "write", offset, data)


class ChildChannel:
    """A :class:`Channel` in the child."""

    def __init__(self, calls: _Connection, messages: _Connection, number: int) -> None:
        self._calls = calls
        self._messages = messages
        self._number = number

    @property
    def extensions(self) -> frozenset[str]:
        return frozenset(self._call("extensions.union"))

    def fileno(self) -> int:
        raise NotImplementedError("the fd is another process's: wait with Node.wait")

    def receive(self) -> DevRequest | None:
        request: DevRequest | None = self._messages.call(self._number, "channel.receive")
        return request

    def respond(self, response: DevResponse) -> None:
        self._messages.call(self._number, "channel.respond", response)

    def dev_get_features(self) -> int:
        return int(self._call("dev_get_features"))

    def dev_set_config(self, offset: int, data: bytes) -> None:
        self._call("dev_set_config", offset, data)

    def dev_inject_config_irq(self) -> None:
        self._call("dev_inject_config_irq")

    def vq_setup(self, index: int, max_size: int, group: int = 0) -> None:
        self._call("vq_setup", index, max_size, group)

    def vq_get_info(self, index: int) -> VqInfo:
        info: VqInfo = self._call("vq_get_info", index)
        return info

    def vq_setup_kickfd(self, index: int, fd: int) -> None:
        self._call("vq_setup_kickfd", index, Fd(fd) if fd >= 0 else fd)

    def vq_inject_irq(self, index: int) -> None:
        self._call("vq_inject_irq", index)

    def iotlb_get_fd(self, start: int, last: int) -> tuple[IotlbEntry, int]:
        entry, fd = self._call("iotlb_get_fd", start, last)
        return entry, fd

    def iotlb_get_info(self, start: int, last: int) -> IovaInfo:
        info: IovaInfo = self._call("iotlb_get_info", start, last)
        return info

    def iotlb_reg_umem(self, umem: IovaUmem) -> None:
        self._call("iotlb_reg_umem", umem)

    def iotlb_dereg_umem(self, umem: IovaUmem) -> None:
        self._call("iotlb_dereg_umem", umem)

    def resolver(self) -> _native.CallSocket:
        raise NotImplementedError("the socket is another process's")

    def vq_get_callfd(self, index: int) -> int:
        return int(self._call("vq_get_callfd", index))

    def vq_get_kickfd(self, index: int) -> int | None:
        fd: int | None = self._call("vq_get_kickfd", index)
        return fd

    def get_inflight_fd(self, size: int, features: int, fresh: bool) -> int:
        return int(self._call("get_inflight_fd", size, features, fresh))

    def clear_inflight(self) -> None:
        self._call("clear_inflight")

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._calls.call(self._number, f"channel.{method}", *arguments)


class ChildNode:
    """Implements :class:`tests.contract.ports.Node`. Takes over ``stop``."""

    def __init__(self, calls: _Connection, messages: _Connection, number: int, stop: int) -> None:
        self._calls = calls
        self._messages = messages
        self._number = number
        self._stop = stop
        self._channel = ChildChannel(calls, messages, number)

    @property
    def channel(self) -> Channel:
        return self._channel

    def wait(self, timeout: float) -> bool:
        return bool(self._messages.call(self._number, "wait", timeout))

    def interrupt(self) -> None:
        os.eventfd_write(self._stop, 1)

    def clear_interrupt(self) -> None:
        os.eventfd_read(self._stop)

    def ioctl(self, nr: int, payload: bytes, fd: int | None = None) -> bytes:
        passed = None if fd is None else Fd(fd)
        return bytes(self._calls.call(self._number, "ioctl", nr, payload, passed))

    def write(self, data: bytes) -> None:
        self._messages.call(self._number, "write", data)

    def read_region(self, start: int, length: int) -> bytes:
        return bytes(self._calls.call(self._number, "read_region", start, length))

    def write_region(self, start: int, data: bytes) -> None:
        self._calls.call(self._number, "write_region", start, data)

    def allocated(self, iova: int) -> int:
        return int(self._calls.call(self._number, "allocated", iova))

    def forget(self) -> None:
        """The program is dead."""
        self._messages.close()
        os.close(self._stop)


class _ChildControl:
    """A :class:`ControlPort` in the child."""

    def __init__(self, calls: _Connection) -> None:
        self._calls = calls
        self.created: dict[str, DevConfig] = {}

    def get_api_version(self) -> int:
        return int(self._call("get_api_version"))

    def set_api_version(self, version: int) -> None:
        self._call("set_api_version", version)

    def create_dev(self, config: DevConfig) -> None:
        self._call("create_dev", config)
        self.created[config.name] = config

    def destroy_dev(self, name: str) -> None:
        self._call("destroy_dev", name)

    def open(self, name: str) -> Channel:
        raise NotImplementedError("the fd is another process's: open with Program.open")

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._calls.call(ROOT, f"control.{method}", *arguments)


class ChildProgram:
    """Implements :class:`tests.contract.ports.Program`."""

    def __init__(
        self,
        kind: str,
        argument: Any = None,
        *,
        unprivileged: bool = False,
        nursery: Nursery | None = None,
    ) -> None:
        """As of :class:`Child`."""
        user = _NOBODY if unprivileged else 0
        #: The process.
        self.child = Child(kind, argument, user=user, nursery=nursery)
        self._calls = self.child.calls
        self._control = _ChildControl(self._calls)
        self._nodes: list[tuple[str, ChildNode]] = []

    @property
    def control(self) -> ControlPort:
        return self._control

    @property
    def created(self) -> Mapping[str, DevConfig]:
        """What it made devices of, by their names."""
        return self._control.created

    def node(self, name: str) -> ChildNode | None:
        """The node it has opened last by that name."""
        return next((node for at, node in reversed(self._nodes) if at == name), None)

    def open(self, name: str) -> ChildNode:
        stop = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            kept: Kept = self.child.call("open_with", name, Fd(stop))
        except BaseException:
            os.close(stop)
            raise
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.child.call("connect", Fd(theirs.fileno()))
        node = ChildNode(self._calls, _Connection(ours), kept.number, stop)
        self._nodes.append((name, node))
        return node

    def control_ioctl(self, nr: int, payload: bytes) -> bytes:
        return bytes(self.child.call("control_ioctl", nr, payload))

    def memory(self, size: int) -> ChildMemory:
        kept: Kept = self.child.call("memory", size)
        return ChildMemory(self._calls, kept.number)

    def limit_locked_memory(self, size: int) -> None:
        self.child.call("limit_locked_memory", size)

    def end(self) -> None:
        self.child.end()
        for _, node in self._nodes:
            node.forget()
        self._nodes.clear()
