"""What a fault is to the table, to the command line and to whoever strikes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vduse.control.units import parse_duration, parse_number
from vduse.run.faults.target import Target

#: Options by name: counts, and seconds.
Values = Mapping[str, float]

#: Bus drivers that a fault is for.
VIRTIO = frozenset({"virtio_vdpa"})
BOTH = frozenset({"virtio_vdpa", "vhost_vdpa"})


class Fault(Protocol):
    """Strikes. Its state is one device's."""

    def strike(self, target: Target, stop: threading.Event) -> str:
        """Does it, and says in some words what was done. Returns early once ``stop`` is set.
        NotNow; OSError: it went wrong."""


@dataclass(frozen=True, slots=True)
class Option:
    """A key of a fault's own."""

    parse: Callable[[str], float]
    default: float
    #: What it says, its unit included.
    help: str


@dataclass(frozen=True)
class Kind:
    """A row of the table."""

    name: str
    #: What it does, in one line.
    summary: str
    #: What the device's clients may notice, in one line.
    clients: str
    #: One for each device. None: :class:`vduse.run.faults.vdpa.FaultyVdpa` does it by itself, and
    #: nobody says when.
    make: Callable[[Values], Fault] | None
    options: Mapping[str, Option] = field(default_factory=dict)
    drivers: frozenset[str] = BOTH
    #: It strikes the program, not a device: once, however many devices there are.
    of_program: bool = False


def count(text: str) -> int:
    """A whole number from 1. ValueError."""
    number = parse_number(text)
    if not number:
        raise ValueError(f"'{text}' is not a whole number above 0")
    return number


def index(text: str) -> int:
    """A virtqueue's index. ValueError."""
    number = parse_number(text)
    if number is None:
        raise ValueError(f"'{text}' is not the number of a virtqueue")
    return number


def seconds(text: str) -> float:
    """A time above 0. ValueError."""
    duration = parse_duration(text)
    if duration == 0:
        raise ValueError(f"'{text}': a time above 0")
    return duration
