"""What the native half of `vduse run` looks like from Python, played without a filter."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vduse import _native


@dataclass(eq=False)
class FakeCall:
    """A :class:`vduse._native.NodeCall`, and its answer."""

    kind: Literal["open", "look", "ioctl"]
    path: str = ""
    flags: int = 0
    key: int = 0
    nr: int = 0
    payload: bytes = b""
    #: The caller's eventfd, or what kick_fd raises.
    kick: int | OSError | None = None
    pid: int = field(default_factory=os.getpid)
    #: Of the answer.
    result: int | None = None
    answer: bytes = b""
    fd: int = -1
    cloexec: bool = False
    stat: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.tid = self.pid
        self.done = threading.Event()

    def kick_fd(self) -> int:
        if isinstance(self.kick, OSError):
            raise self.kick
        assert self.kick is not None
        return os.dup(self.kick)

    def reply(self, result: int, payload: bytes = b"") -> None:
        self._answered(result)
        self.answer = payload
        self.done.set()

    def reply_fd(self, fd: int, *, payload: bytes = b"", cloexec: bool) -> bool:
        self._answered(0)
        self.fd, self.answer, self.cloexec = os.dup(fd), payload, cloexec
        self.done.set()
        return True

    def reply_stat(self, mode: int, rdev: int) -> None:
        self._answered(0)
        self.stat = (mode, rdev)
        self.done.set()

    def _answered(self, result: int) -> None:
        if self.result is not None:
            raise ValueError("answered already")
        self.result = result


class FakeSupervised:
    """A :class:`vduse._native.Supervised`; the test makes its calls."""

    def __init__(self, pid: int = 0) -> None:
        self.pid = pid or os.getpid()
        self.ended = False
        self.closed = threading.Event()
        self.nodes: dict[int, tuple[int, _native.IrqGate | None]] = {}
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._calls: list[FakeCall] = []
        #: Everything that the program has opened.
        self.files: list[FakeFile] = []

    def fileno(self) -> int:
        return self._event

    def take(self) -> list[FakeCall]:
        with self._lock:
            os.eventfd_write(self._event, 1)
            os.eventfd_read(self._event)
            taken, self._calls = self._calls, []
            return taken

    def notices(self) -> list[str]:
        return []

    def add_node(self, inode: int, key: int, gate: _native.IrqGate | None) -> None:
        self.nodes[inode] = (key, gate)

    def remove_node(self, inode: int) -> None:
        self.nodes.pop(inode, None)

    def stats(self) -> dict[str, int]:
        return {"opens": 0}

    def close(self) -> None:
        self.closed.set()

    def make(self, call: FakeCall) -> FakeCall:
        """Makes a call and waits for its answer. OSError: with its errno."""
        with self._lock:
            self._calls.append(call)
        os.eventfd_write(self._event, 1)
        assert call.done.wait(60)
        assert call.result is not None
        if call.result < 0:
            raise OSError(-call.result, os.strerror(-call.result))
        return call

    def open(self, path: str, flags: int = os.O_RDWR) -> FakeFile:
        """open(2)."""
        self.files.append(FakeFile(self, self.make(FakeCall("open", path, flags)).fd))
        return self.files[-1]

    def die(self) -> None:
        """As at a program's end: everything is closed."""
        for file in self.files:
            file.close()
        os.close(self._event)

    def stat(self, path: str) -> tuple[int, int]:
        """stat(2): mode and rdev."""
        return self.make(FakeCall("look", path)).stat


class FakeFile:
    """An open node of the program's."""

    def __init__(self, supervised: FakeSupervised, fd: int) -> None:
        self.sock = socket.socket(fileno=fd)
        self._supervised = supervised

    @property
    def node(self) -> tuple[int, _native.IrqGate | None]:
        """By which its calls are known."""
        return self._supervised.nodes[os.fstat(self.sock.fileno()).st_ino]

    def ioctl(
        self, nr: int, payload: bytes = b"", *, kick: int | OSError | None = None
    ) -> FakeCall:
        """ioctl(2)."""
        key, _ = self.node
        return self._supervised.make(FakeCall("ioctl", key=key, nr=nr, payload=payload, kick=kick))

    def close(self) -> None:
        self.sock.close()


class Spawned(FakeSupervised):
    """A real program, without a filter."""

    #: What was started, in order.
    made: list[Spawned]

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str | None = None,
        stdio: tuple[int, int, int] = (0, 1, 2),
    ) -> Spawned:
        """OSError: no such program."""
        stdin, stdout, stderr = stdio
        process = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            process_group=0,
        )
        made = cls(process.pid)
        # It is waited for by who asked for it.
        process.returncode = 0
        cls.made.append(made)
        return made
