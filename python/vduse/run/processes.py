"""The processes that a program consists of: waiting for them, and ending them.

A daemon forks. Its children outlive it, become children of whoever adopts orphans, and have its
nodes open still. ``vduse run`` is a process of its own and adopts them (PR_SET_CHILD_SUBREAPER), so
that its children are the program, all of it. Inside another program (a test) that would not do: it
has other children.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_PR_SET_CHILD_SUBREAPER = 36


class Family(Protocol):
    """Whose end is waited for, and brought about."""

    def wait(self) -> tuple[int, int]:
        """Waits for the next process that ends: its pid and wait status. ChildProcessError: there
        are no more."""

    def signal(self, signum: int) -> None:
        """To all there are; nothing where there are none."""


class AllChildren:
    """Every child of this process, which adopts orphans from now on."""

    def __init__(self) -> None:
        """OSError: it cannot."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"PR_SET_CHILD_SUBREAPER: {os.strerror(error)}")

    def of(self, pid: int) -> Family:
        """The program that begins with child ``pid``."""
        return self

    def wait(self) -> tuple[int, int]:
        return os.waitpid(-1, 0)

    def signal(self, signum: int) -> None:
        for pid in list(children(os.getpid())):
            _send(pid, signum)


class OneChild:
    """A child of a process that has others, too, with its own children as far as they are to be
    found: by their parents, and by the process group that it is the leader of. Those that have gone
    their own way (setsid, and their parent is dead) are not."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._waited = False

    def wait(self) -> tuple[int, int]:
        if self._waited:
            raise ChildProcessError
        _, status = os.waitpid(self._pid, 0)
        self._waited = True
        return self._pid, status

    def signal(self, signum: int) -> None:
        # From the leaves: whose parent has died is not found any more.
        for pid in reversed([self._pid, *descendants(self._pid)]):
            if pid != self._pid or not self._waited:
                _send(pid, signum)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signum)


def children(pid: int) -> Iterator[int]:
    """Processes whose parent it is."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _parent(entry) == pid:
            yield int(entry.name)


def descendants(pid: int) -> Iterator[int]:
    """Its children, and theirs."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def kill_descendants() -> None:
    """SIGKILL to all that this process has started, and they."""
    for pid in list(descendants(os.getpid())):
        _send(pid, signal.SIGKILL)


def exit_code(status: int) -> int:
    """Of a wait status, as a shell has it: 128 + N after signal N."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def signal_name(status: int) -> str | None:
    """Of a wait status: what killed it; None: it ended by itself."""
    if not os.WIFSIGNALED(status):
        return None
    number = os.WTERMSIG(status)
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _parent(entry: Path) -> int | None:
    try:
        # The name in parentheses may have spaces and parentheses: the last one ends it.
        fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1])


def _send(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)
