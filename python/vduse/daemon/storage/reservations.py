"""Names that commands are at work on.

What opens, closes or resizes a backend may wait for a server, so no lock is held meanwhile: the
names are reserved, and commands for others go on."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic

from vduse.daemon.qmp.errors import QmpError


class Work(StrEnum):
    """What is done to a name, as errors say it."""

    OPENING = "opened"
    CLOSING = "closed"
    RESIZING = "resized"
    REOPENING = "reopened"


@dataclass(frozen=True)
class Name:
    """Of one thing among those of its kind."""

    #: ``node``, for example.
    kind: str
    #: Empty: there is but one.
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'" if self.name else self.kind


class Reservations:
    """Whoever changes what the daemon has holds :attr:`lock` to look and to reserve, works
    without it, and holds it again to enter what came of it."""

    def __init__(self) -> None:
        #: Guards all that the daemon has. Never held while anything is waited for.
        self.lock = threading.Condition(threading.RLock())
        self._held: dict[Name, Work] = {}
        self._ended = False

    def check_open(self) -> None:
        """QmpError: the daemon is ending."""
        if self._ended:
            raise QmpError("the daemon is ending")

    def check(self, kind: str, name: str = "") -> None:
        """QmpError: a command is at work on it."""
        wanted = Name(kind, name)
        if work := self._held.get(wanted):
            raise QmpError(f"{wanted} is still being {work}")

    @contextmanager
    def held(self, kind: str, names: Iterable[str], work: Work) -> Iterator[None]:
        """Reserves names that are free. QmpError: a command is at work on one; the daemon is
        ending."""
        mine = [Name(kind, name) for name in names]
        with self.lock:
            self.check_open()
            for name in mine:
                self.check(name.kind, name.name)
            self._held.update(dict.fromkeys(mine, work))
        try:
            yield
        finally:
            with self.lock:
                for name in mine:
                    del self._held[name]
                self.lock.notify_all()

    def end(self) -> None:
        """Nothing is reserved any more; what is at work goes on."""
        with self.lock:
            self._ended = True

    def settle(self, seconds: dict[Work, float]) -> list[str]:
        """Waits for the commands at work, for each kind at most so many seconds; what is still
        going on then, as sentences."""
        begun = monotonic()
        with self.lock:
            while self._held:
                left = max(begun + seconds[work] - monotonic() for work in self._held.values())
                if left <= 0:
                    break
                self.lock.wait(left)
            return [f"{name} is still being {work}" for name, work in self._held.items()]
