"""Answers what one supervised program asks of /dev/vduse, by the framework's own nodes.

The system calls come from :class:`vduse._native.Supervised`, which answers irqs itself; messages
go over a socket whose other end is the program's open node. So nothing here waits, and a program
that never answers, or dies in the middle of a call, holds up nobody.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import resource
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from vduse import _native
from vduse.channel.packet import Credentials
from vduse.channel.server import BURST, CallHandler, told_call
from vduse.control.abi import Ioctl, VqEventfd
from vduse.framework.device import VduseDevice
from vduse.framework.nodes import Nodes
from vduse.run.paths import CONTROL, check_open, look, name_of

log = logging.getLogger(__name__)

#: Nodes that a program and its children may have open at once, at most; each is an fd of this
#: process, of whose fds they are no more than a quarter.
MAX_NODES = 1024


@dataclass(frozen=True, slots=True)
class _Node:
    """One open file description of the program's."""

    handler: CallHandler
    #: Of its end of the socket, by which its calls are known.
    inode: int
    #: None: a control node.
    device: VduseDevice | None

    @property
    def name(self) -> str:
        """As taps are told it: empty for a control node."""
        return "" if self.device is None else self.device.name


class Supervisor:
    """An endpoint of the framework's service thread; every method runs there."""

    wants_write = False

    def __init__(
        self,
        nodes: Nodes,
        supervised: _native.Supervised,
        on_set_up: Callable[[VduseDevice], None],
    ) -> None:
        """``on_set_up``: told, on the service thread, when all virtqueues of a device that the
        program has open are set up: as it opens it, where an earlier program has done so, or at
        the last VQ_SETUP; again for each VQ_SETUP after that. ``supervised`` is closed with
        this."""
        self._nodes = nodes
        self._supervised = supervised
        self._on_set_up = on_set_up
        self._keys = itertools.count(1)
        self._open: dict[int, _Node] = {}
        #: Set once it is over, and no node is open any more.
        self.closed = threading.Event()
        #: Who makes the call that is answered now.
        self._call: _native.NodeCall | None = None

    def fileno(self) -> int:
        return self._supervised.fileno()

    def serve(self) -> bool:
        calls = self._supervised.take()
        for notice in self._supervised.notices():
            # Many set io_uring up that open no device by it.
            level = logging.INFO if "io_uring" in notice else logging.WARNING
            log.log(level, "pid %d: %s", self._supervised.pid, notice)
        for call in calls:
            self._answer(call)
        return not self._supervised.ended

    def close(self) -> None:
        """Kills the program, where it lives still; its device nodes are closed then."""
        self._supervised.close()
        for node in list(self._open.values()):
            if node.device is not None:
                node.device.look_at_opener()
        self.closed.set()

    def _answer(self, call: _native.NodeCall) -> None:
        try:
            self._call = call
            _ANSWERS[call.kind](self, call)
        except OSError as error:
            log.info("%s of %s: %s", call.kind, call.path or "a node", str(error))
            _refuse(call, error.errno or errno.EIO)
        except Exception:
            log.exception("%s of %s failed", call.kind, call.path or "a node")
            _refuse(call, errno.EIO)
        finally:
            self._call = None

    def _look(self, call: _native.NodeCall) -> None:
        found = look(call.path, self._nodes.devices.devices)
        call.reply_stat(found.mode, found.rdev)

    # --- open -------------------------------------------------------------------------------

    def _open_node(self, call: _native.NodeCall) -> None:
        name = name_of(call.path, self._nodes.devices.devices)
        check_open(name, call.flags)
        if len(self._open) >= _most_nodes():
            raise OSError(errno.EMFILE, f"the program has {len(self._open)} nodes open")
        key = next(self._keys)
        node, theirs = self._control(key) if name == CONTROL else self._device(key, name)
        with theirs:
            theirs.setblocking(not call.flags & os.O_NONBLOCK)
            self._open[key] = node
            # With a tap, irqs are calls like others, which it is told of.
            direct = node.device is not None and self._nodes.tap is None
            gate = node.device.irqs if direct and node.device is not None else None
            self._supervised.add_node(node.inode, key, gate)
            call.reply_fd(theirs.fileno(), cloexec=bool(call.flags & os.O_CLOEXEC))
        if node.device is not None:
            self._look_at_queues(node.device)

    def _control(self, key: int) -> tuple[_Node, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        handler = self._nodes.open_control(self._caller)
        node = _Node(handler, os.fstat(theirs.fileno()).st_ino, None)
        self._nodes.service.add(_OpenControl(ours, lambda: self._release(key)))
        return node, theirs

    def _device(self, key: int, name: str) -> tuple[_Node, socket.socket]:
        node, theirs = self._nodes.open_device(name, self._caller, lambda: self._release(key))
        return _Node(node, os.fstat(theirs.fileno()).st_ino, node.device), theirs

    def _release(self, key: int) -> None:
        node = self._open.pop(key, None)
        if node is not None:
            self._supervised.remove_node(node.inode)

    # --- ioctl ------------------------------------------------------------------------------

    def _ioctl(self, call: _native.NodeCall) -> None:
        node = self._open.get(call.key)
        if node is None:
            raise OSError(errno.ENODEV, "the node is closed")
        handler, fds = node.handler, []
        if call.nr == Ioctl.VQ_SETUP_KICKFD and _names_fd(call.payload):
            try:
                fds.append(call.kick_fd())
            except OSError as error:
                handler = _Refusing(error)
        try:
            result, answer, answer_fds = told_call(
                handler, call.nr, call.payload, fds, node.name, self._nodes.tap
            )
        except ValueError as error:
            code = errno.EINVAL if call.payload else errno.EFAULT
            raise OSError(code, str(error)) from None
        finally:
            for fd in fds:
                os.close(fd)
        if answer_fds:
            _reply_fds(call, answer, answer_fds)
        else:
            call.reply(result, answer)
        if call.nr == Ioctl.VQ_SETUP and result >= 0 and node.device is not None:
            self._look_at_queues(node.device)

    def _look_at_queues(self, device: VduseDevice) -> None:
        # From the end: they are mostly set up in their order.
        if all(vq.num_max for vq in reversed(device.vqs)):
            self._on_set_up(device)

    def _caller(self) -> Credentials:
        """Whose ioctl runs now."""
        assert self._call is not None  # nodes ask in their ioctl only
        pid = self._call.pid
        try:
            found = os.stat(f"/proc/{pid}")
        except OSError:
            return Credentials(pid, -1, -1)
        return Credentials(pid, found.st_uid, found.st_gid)


_ANSWERS: dict[str, Callable[[Supervisor, _native.NodeCall], None]] = {
    "open": Supervisor._open_node,
    "look": Supervisor._look,
    "ioctl": Supervisor._ioctl,
}


class _OpenControl:
    """The socket that stands for an open control node: nothing goes over it, its end is the
    node's."""

    wants_write = False

    def __init__(self, sock: socket.socket, on_release: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_release = on_release

    def fileno(self) -> int:
        return self._sock.fileno()

    def serve(self) -> bool:
        try:
            for _ in range(BURST):  # what is written to it is lost
                if not self._sock.recv(1):
                    return False
        except BlockingIOError:
            return True
        except OSError as error:
            log.info("control node: %s", error.strerror)
            return False
        return True

    def close(self) -> None:
        self._sock.close()
        self._on_release()


class _Refusing:
    """A handler whose calls fail before they reach their node."""

    def __init__(self, error: OSError) -> None:
        self._why = error.errno, error.strerror

    def ioctl(self, nr: int, payload: bytes, fds: list[int]) -> tuple[int, bytes, list[int]]:
        raise OSError(*self._why)


def _most_nodes() -> int:
    fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_NODES if fds == resource.RLIM_INFINITY else min(MAX_NODES, fds // 4)


def _refuse(call: _native.NodeCall, error: int) -> None:
    with suppress(ValueError):  # it was answered before that went wrong
        call.reply(-error)


def _names_fd(payload: bytes) -> bool:
    """Of VQ_SETUP_KICKFD: the eventfd is one of the caller's."""
    return len(payload) == VqEventfd.SIZE and VqEventfd.unpack(payload).fd >= 0


def _reply_fds(call: _native.NodeCall, answer: bytes, fds: list[int]) -> None:
    """An ioctl's one fd, as VDUSE_IOTLB_GET_FD installs it: not close-on-exec."""
    try:
        [fd] = fds
        call.reply_fd(fd, payload=answer, cloexec=False)
    finally:
        for fd in fds:
            os.close(fd)
