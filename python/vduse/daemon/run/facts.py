"""What `vduse run` has to say: facts, and the same for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vduse.control.statistics import Statistics


@dataclass(frozen=True)
class Started:
    """The program runs (``started``)."""

    event: str
    #: Of the program, which has a /dev/vduse of its own.
    pid: int
    #: Its command line.
    program: tuple[str, ...]
    #: Of this command.
    supervisor: int
    #: Its folder for temporary files, removed at the end.
    tmpdir: str
    #: How often it has been started: 1, 2...
    starts: int


@dataclass(frozen=True)
class Serving:
    """A device is on the bus, and can be reached (``serving``)."""

    event: str
    name: str
    #: Virtio device type: block, net...
    type: str
    #: Virtqueues, and descriptors of each at most.
    queues: int
    queue_size: int
    #: Bytes of a disk under virtio_vdpa; else None.
    size: int | None
    #: virtio_vdpa, vhost_vdpa; None: left unbound.
    driver: str | None
    #: Of NBD or vhost-user; None: no door.
    socket: str | None
    #: Of NBD.
    uri: str | None


@dataclass(frozen=True)
class Counted:
    """SIGUSR1: the counters now (``statistics``)."""

    event: str
    statistics: Statistics
    #: Of the framework, for each device: messages, kicks, irqs.
    framework: Mapping[str, Mapping[str, int]]
    #: What the program's system calls were: see :meth:`vduse._native.Supervised.stats`.
    notifications: Mapping[str, int]


@dataclass(frozen=True)
class Broken:
    """A device does not answer, or could not be put on the bus (``broken``)."""

    event: str
    name: str
    reason: str


@dataclass(frozen=True)
class Exited:
    """The program has ended (``exited``)."""

    event: str
    pid: int
    #: Its exit code, 128 + the signal's number for a signal.
    exit_code: int
    #: SIGKILL...; None: it ended by itself.
    signal: str | None
    #: Seconds until it is started again; None: it is not.
    restart: float | None


@dataclass(frozen=True)
class Ending:
    """Everything is about to end, in order (``ending``)."""

    event: str
    #: As of :class:`Ended`.
    reason: str


@dataclass(frozen=True)
class Found:
    """What a trace, a check or a fault has to say at the end (``found``)."""

    event: str
    name: str
    ok: bool
    lines: tuple[str, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """Everything has ended (``ended``)."""

    event: str
    #: The signal, "the program ended", what broke, or what a companion said.
    reason: str
    #: Of this command.
    exit_code: int
    #: What was not in order, for people to read.
    failures: tuple[str, ...]


Facts = Started | Serving | Counted | Broken | Exited | Ending | Found | Ended
