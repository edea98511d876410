"""The same programs in processes of their own: calls go over a socket, as pickles and fds.

Processes are forked from one that has imported everything and has no threads, the *nursery*. A
call is ``(object, method, *arguments)``, its answer the result or the exception. Connections are
served by a thread each, so that one may wait for messages while another makes ioctls.
"""

from __future__ import annotations

import atexit
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from tests.contract.embedded_program import EmbeddedProgram
from tests.contract.kernel_program import KernelProgram
from tests.contract.local_program import LocalMemory, LocalNode
from tests.contract.vhost_opener import VhostOpener
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

_MAX_PACKET = 1 << 17
_NOBODY = 65534
_ROOT = 0
_TREE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fd:
    """An fd in a call or an answer; on the way, its place among the packet's fds."""

    number: int


@dataclass(frozen=True)
class _Kept:
    """A result that stays in the child, by number."""

    number: int


#: Methods that keep the fds they get.
_TAKES_OVER = {"open_with"}
#: Results that are or contain fds.
_FD_RESULTS: dict[str, Callable[[Any], Any]] = {
    "channel.iotlb_get_fd": lambda result: (result[0], Fd(result[1])),
    "channel.vq_get_callfd": Fd,
    "channel.vq_get_kickfd": lambda result: result if result is None else Fd(result),
    "channel.get_inflight_fd": Fd,
}


def _send(sock: socket.socket, values: tuple[Any, ...]) -> list[int]:
    """Sends; the fds that went along."""
    fds = [value.number for value in values if isinstance(value, Fd)]
    places = iter(range(len(fds)))
    values = tuple(Fd(next(places)) if isinstance(value, Fd) else value for value in values)
    socket.send_fds(sock, [pickle.dumps(values)], fds)
    return fds


def _receive(sock: socket.socket) -> tuple[tuple[Any, ...], list[int]] | None:
    """The values, fds as their numbers, and the fds; None: the other end is gone."""
    data, fds, _, _ = socket.recv_fds(sock, _MAX_PACKET, 4, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    values: tuple[Any, ...] = pickle.loads(data)
    placed = (fds[value.number] if isinstance(value, Fd) else value for value in values)
    return tuple(placed), fds


# --- in the child --------------------------------------------------------------------------


class _Server:
    def __init__(self, root: object) -> None:
        self._kept: dict[int, Any] = {_ROOT: root}

    def serve(self, sock: socket.socket) -> None:
        """Until the other end is gone."""
        with sock:
            while (call := _receive(sock)) is not None:
                (target, method, *arguments), fds = call
                if method == "connect":
                    self._connect(arguments[0])
                    _send(sock, (True, None))
                    continue
                self._answer(sock, target, method, arguments)
                if method not in _TAKES_OVER:
                    for fd in fds:
                        os.close(fd)

    def _connect(self, fd: int) -> None:
        threading.Thread(target=self.serve, args=(socket.socket(fileno=fd),), daemon=True).start()

    def _answer(self, sock: socket.socket, target: int, method: str, arguments: list[Any]) -> None:
        try:
            result = attrgetter(method)(self._kept[target])(*arguments)
        except Exception as error:
            _send(sock, (False, error))
            return
        if isinstance(result, LocalNode | LocalMemory):
            number = len(self._kept)
            self._kept[number] = result
            result = _Kept(number)
        result = _FD_RESULTS.get(method, lambda plain: plain)(result)
        parts = result if isinstance(result, tuple) else (result,)
        for fd in _send(sock, (True, *parts)):
            os.close(fd)


def _become(user: int) -> None:
    if user and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


#: What a child may be.
_KINDS: dict[str, Callable[[Any], object]] = {
    "embedded": EmbeddedProgram,
    "kernel": lambda _: KernelProgram(),
    "vhost": lambda _: VhostOpener(),
}


def nursery(fd: int) -> None:
    """Forks a child for each order that comes over socket ``fd``: what it is, a user id, the
    socket of its calls, and the control socket of an embedded program. Answers with the process
    number."""
    orders = socket.socket(fileno=fd)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (order := _receive(orders)) is not None:
        (kind, user, calls, control), fds = order
        pid = os.fork()
        if pid == 0:
            orders.close()
            _become(user)
            _Server(_KINDS[kind](control)).serve(socket.socket(fileno=calls))
            os._exit(0)
        for fd in fds:
            os.close(fd)
        _send(orders, (pid,))


# --- in the test ---------------------------------------------------------------------------

#: One order at a time, from any thread.
_ORDERING = threading.Lock()


@cache
def _orders() -> socket.socket:
    """The nursery's socket; it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import {__name__} as m; m.nursery({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            cwd=_TREE,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


class _Connection:
    """One connection; calls on it take turns."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def call(self, target: int, method: str, *arguments: Any) -> Any:
        with self._lock:
            try:
                _send(self._sock, (target, method, *arguments))
                answer = _receive(self._sock)
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

    def __init__(self, kind: str, *, control: int | None = None, user: int = 0) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            port = None if control is None else Fd(control)
            with _ORDERING:
                _send(_orders(), (kind, user, Fd(theirs.fileno()), port))
                answer = _receive(_orders())
        assert answer is not None, "the nursery is dead"
        (self.pid,), _ = answer
        self._process = os.pidfd_open(self.pid)
        self.calls = _Connection(ours)
        #: It was ended.
        self.ended = False

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of that object."""
        return self.calls.call(_ROOT, method, *arguments)

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
        return self._calls.call(_ROOT, f"control.{method}", *arguments)


class ChildProgram:
    """Implements :class:`tests.contract.ports.Program`."""

    def __init__(self, control: int | None, *, unprivileged: bool = False) -> None:
        """On a control socket, which it takes over, or on /dev/vduse (None)."""
        kind = "kernel" if control is None else "embedded"
        #: The process.
        self.child = Child(kind, control=control, user=_NOBODY if unprivileged else 0)
        if control is not None:
            os.close(control)
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
            kept: _Kept = self.child.call("open_with", name, Fd(stop))
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
        kept: _Kept = self.child.call("memory", size)
        return ChildMemory(self._calls, kept.number)

    def limit_locked_memory(self, size: int) -> None:
        self.child.call("limit_locked_memory", size)

    def end(self) -> None:
        self.child.end()
        for _, node in self._nodes:
            node.forget()
        self._nodes.clear()
