"""Small programs under :class:`vduse._native.Supervised`, their calls answered by hand."""

from __future__ import annotations

import os
import select
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from vduse._native import NodeCall, Supervised

#: The interpreter itself: a virtual environment may be closed to other users.
PYTHON = os.path.realpath(sys.executable)

#: What every program begins with. ``ioctl`` returns its result and the struct afterwards, or
#: raises; ``failed`` is the errno's name of whatever it calls.
PREAMBLE = """
import ctypes, errno, fcntl, os, signal, socket, struct, sys, threading, time

def ioctl(fd, nr, data=b''):
    buffer = bytearray(data)
    result = fcntl.ioctl(fd, nr, buffer, True)
    return result, bytes(buffer)

def failed(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno]
    return 'succeeded'

libc = ctypes.CDLL(None, use_errno=True)

def syscall(*arguments):
    result = libc.syscall(*map(ctypes.c_long, arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), 'syscall')
    return result

GET_API_VERSION, SET_API_VERSION = 0x80088100, 0x40088101
CREATE_DEV, DEV_SET_CONFIG, VQ_GET_INFO = 0x41508102, 0x40088112, 0xC0308115
VQ_SETUP_KICKFD, VQ_INJECT_IRQ, IOTLB_GET_FD = 0x40088116, 0x40048117, 0xC0208110
"""

GET_API_VERSION, SET_API_VERSION = 0x80088100, 0x40088101
CREATE_DEV, DEV_SET_CONFIG, VQ_GET_INFO = 0x41508102, 0x40088112, 0xC0308115
VQ_SETUP_KICKFD, VQ_INJECT_IRQ, IOTLB_GET_FD = 0x40088116, 0x40048117, 0xC0208110

Handler = Callable[[NodeCall], None]

#: Milliseconds: a watchdog.
_PATIENCE = 120_000


class Program:
    """A program that runs. Its stdout and stderr go to one memory file."""

    def __init__(self, script: str, *arguments: str, python: str = PYTHON) -> None:
        self._output = os.memfd_create("output")
        code = PREAMBLE + textwrap.dedent(script)
        with open(os.devnull) as nothing:
            self.supervised = Supervised.spawn(
                [python, "-I", "-S", "-c", code, *arguments],
                {"PATH": os.environ["PATH"]},
                stdio=(nothing.fileno(), self._output, self._output),
            )
        self._pidfd = os.pidfd_open(self.supervised.pid)
        self._poller = select.poll()
        self._poller.register(self.supervised, select.POLLIN)
        self._poller.register(self._pidfd, select.POLLIN)
        #: The ends that the program has of the nodes it opened, by key; ours, to talk to it.
        self.ours: dict[int, socket.socket] = {}
        self.exit_code: int | None = None

    def output(self) -> str:
        """What it has written so far."""
        return os.pread(self._output, 1 << 20, 0).decode()

    def calls(self) -> list[NodeCall]:
        """Waits for calls, notices or an end; the calls."""
        events = self._poller.poll(_PATIENCE)
        assert events, "nothing has happened"
        return self.supervised.take()

    def next(self) -> NodeCall:
        """Waits for the one call that comes next."""
        found: list[NodeCall] = []
        while not found:
            found = self.calls()
            assert found or not self.supervised.ended, self.output()
        [call] = found
        return call

    @property
    def over(self) -> bool:
        """The program has ended (and may be waited for)."""
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def serve(self, handler: Handler) -> str:
        """Answers every call until the program has ended well; what it has written."""
        while not self.over:
            for call in self.calls():
                handler(call)
        assert self.wait() == 0, self.output()
        return self.output()

    def wait(self) -> int:
        """Waits for its end; its exit code, or minus the signal."""
        if self.exit_code is None:
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.supervised.pid, 0)[1])
            self._poller.unregister(self._pidfd)
        return self.exit_code

    def open(self, call: NodeCall, key: int = 1, gate: object = None) -> None:
        """Answers an open with a socket, as node ``key``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            inode = os.fstat(theirs.fileno()).st_ino
            self.supervised.add_node(inode, key, gate)  # type: ignore[arg-type]
            if call.flags & os.O_NONBLOCK:
                theirs.setblocking(False)
            call.reply_fd(theirs.fileno(), cloexec=bool(call.flags & os.O_CLOEXEC))
        self.ours[key] = ours

    def close(self) -> None:
        self.supervised.close()
        with suppress(ChildProcessError):
            self.wait()
        for sock in self.ours.values():
            sock.close()
        os.close(self._pidfd)
        os.close(self._output)


@contextmanager
def program(script: str, *arguments: str, python: str = PYTHON) -> Iterator[Program]:
    """Runs a program until the block's end."""
    running = Program(script, *arguments, python=python)
    try:
        yield running
    finally:
        running.close()


def opening(running: Program, ioctl: Handler | None = None, gate: object = None) -> Handler:
    """A handler that opens every path as node 1, 2, ... and hands on ioctls."""

    def handle(call: NodeCall) -> None:
        if call.kind == "open":
            running.open(call, len(running.ours) + 1, gate)
        elif call.kind == "look":
            call.reply(-2)
        elif ioctl is not None:
            ioctl(call)
        else:
            call.reply(0)

    return handle


def unexpected(call: NodeCall) -> None:
    """A handler where no call should come."""
    raise AssertionError(f"{call.kind} {call.path} {call.nr:#x}")
