"""Sockets that a service manager listens at for this process (sd_listen_fds(3)).

Their names are ``FileDescriptorName=`` of systemd's socket units, else the units' names."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import cache

from vduse.control.spelling import did_you_mean
from vduse.exports.errors import ExportError
from vduse.exports.listen_inherited import InheritedListener

#: The number of the first one.
FIRST = 3
_MOST = 1 << 16


def names(environment: Mapping[str, str], pid: int) -> dict[int, str]:
    """Names of the sockets by number; none, where they are meant for another process."""
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    text = environment.get("LISTEN_FDS", "")
    count = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    called = environment.get("LISTEN_FDNAMES", "").split(":")
    called += ["unknown"] * (count - len(called))
    return dict(zip(range(FIRST, FIRST + min(count, _MOST)), called, strict=False))


class Sockets:
    """Listening sockets of this process by number or name, each for one user at a time."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """``names``: of those that a service manager passed."""
        self._names = names
        self._users: dict[int, InheritedListener] = {}
        self._lock = threading.Lock()
        for fd in names:
            # As everything else that is open here; the manager cannot pass it so.
            os.set_inheritable(fd, False)

    def listener(self, name: str) -> InheritedListener:
        """``name``: a number (QEMU has no other), or that of a service manager's. ExportError:
        there is none of it, or somebody has it."""
        fd = self._number(name)
        with self._lock:
            user = self._users.get(fd)
            if user is not None and user.fileno() >= 0:
                raise ExportError(f"{user.path} is in use already")
            shown = f"fd {fd}" if name.isdecimal() else f"fd {fd} ({name})"
            listener = self._users[fd] = InheritedListener(fd, shown)
            return listener

    def _number(self, name: str) -> int:
        if name.isascii() and name.isdecimal():
            return int(name)
        found = [fd for fd, called in self._names.items() if called == name]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise ExportError(f"sockets {numbers} are called '{name}': say a number")
        if not found:
            known = sorted(set(self._names.values()))
            there = f"there are {', '.join(known)}" if known else "none was passed"
            hint = did_you_mean(name, known) or f" ({there})"
            raise ExportError(f"no socket '{name}' was passed by a service manager{hint}")
        return found[0]


@cache
def sockets() -> Sockets:
    """This process's. Called first before a fork: they are not passed on to another process."""
    return Sockets(names(os.environ, os.getpid()))
