"""What is counted, and how it is collected: docs/statistics.md has every field.

json.dumps(collect(devices=[device], disks=[disk], exports={"/run/disk.sock": export}))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypedDict


class HasStats(Protocol):
    """Something that counts."""

    def stats(self) -> Any:
        """A mapping that JSON can say; None or empty: nothing yet."""


class NamedStats(HasStats, Protocol):
    """A device or a disk."""

    @property
    def name(self) -> str:
        """The device's name."""


class Statistics(TypedDict):
    """Of a process, at one moment. Counts begin when a device, driver or export is made."""

    #: Device side, by device name.
    devices: dict[str, Any]
    #: Driver side, by device name.
    disks: dict[str, Any]
    #: By what the caller calls them.
    exports: dict[str, Any]


def collect(
    *,
    devices: Iterable[NamedStats] = (),
    disks: Iterable[NamedStats] = (),
    exports: Mapping[str, HasStats] | None = None,
) -> Statistics:
    """Asks all of them once; from any thread, at any time. What has not begun is left out."""
    return {
        "devices": _asked({device.name: device for device in devices}),
        "disks": _asked({disk.name: disk for disk in disks}),
        "exports": _asked(exports or {}),
    }


def _asked(sources: Mapping[str, HasStats]) -> dict[str, Any]:
    return {name: stats for name, source in sources.items() if (stats := source.stats())}
