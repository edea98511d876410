"""``throttle-group``: limits that throttle nodes share."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec.structs

from vduse.backends.layers import Limits, Throttle
from vduse.daemon.qmp.arguments import Mistake, Model
from vduse.daemon.storage.objects.options import Object, ObjectOptions

_RATES = tuple(f"{unit}_{ops}" for unit in ("iops", "bps") for ops in ("total", "read", "write"))
#: What lies beyond is no limit of any disk, and no float has it exactly.
_LARGEST = 10**15
_NO_RATE = "bps_max/iops_max require corresponding bps/iops values"
_LOWER = "bps_max/iops_max cannot be lower than bps/iops"
_BOTH = "bps/iops/max total values and read/write values cannot be used at the same time"


class ThrottleLimits(Model, frozen=True, kw_only=True):
    """ThrottleLimits: operations and bytes a second, 0 for no limit; ``_max``: what may pass at
    once after a pause, 0 for a tenth of a second's."""

    iops_total: int = 0
    iops_total_max: int = 0
    iops_read: int = 0
    iops_read_max: int = 0
    iops_write: int = 0
    iops_write_max: int = 0
    bps_total: int = 0
    bps_total_max: int = 0
    bps_read: int = 0
    bps_read_max: int = 0
    bps_write: int = 0
    bps_write_max: int = 0
    #: A request of more bytes counts as several operations; 0: it does not.
    iops_size: int = 0

    def mistakes(self) -> Iterator[Mistake]:
        for field in msgspec.structs.fields(self):
            if not 0 <= getattr(self, field.name) <= _LARGEST:
                text = f"bps/iops/max values must be within [0, {_LARGEST}]"
                yield Mistake(field.encode_name, text)
        for rate in _RATES:
            name, given, most = rate.replace("_", "-"), getattr(self, rate), f"{rate}_max"
            if getattr(self, most) and not given:
                yield Mistake(f"{name}-max", _NO_RATE)
            elif 0 < getattr(self, most) < given:
                yield Mistake(f"{name}-max", _LOWER)
        for unit in ("iops", "bps"):
            total = getattr(self, f"{unit}_total")
            if total and (getattr(self, f"{unit}_read") or getattr(self, f"{unit}_write")):
                yield Mistake(f"{unit}-total", _BOTH)
        if self.iops_size and not (self.iops_total or self.iops_read or self.iops_write):
            yield Mistake("iops-size", "iops size requires an iops value to be set")

    def limits(self) -> Limits:
        """As layers have them."""
        given = msgspec.structs.asdict(self)
        return Limits(**{name: value or None for name, value in given.items()})


class ThrottleGroupOptions(ObjectOptions, frozen=True, kw_only=True, tag="throttle-group"):
    """Options."""

    limits: ThrottleLimits = ThrottleLimits()

    def open(self) -> ThrottleGroup:
        return ThrottleGroup(self)


class ThrottleGroup(Object):
    """Of throttle nodes, which take turns under its limits."""

    missing = ("Throttle group '", "' does not exist")

    def __init__(self, options: ThrottleGroupOptions) -> None:
        super().__init__(options)
        self._limits = options.limits
        self.throttle = Throttle(options.limits.limits())

    @property
    def limits(self) -> ThrottleLimits:
        """The limits now. New ones hold at once, also for what waits already."""
        return self._limits

    @limits.setter
    def limits(self, limits: ThrottleLimits) -> None:
        self.throttle.limits = limits.limits()
        self._limits = limits
