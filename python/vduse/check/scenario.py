"""What a scenario is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vduse.check.rules import Rule
from vduse.check.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Drives the device into situations that rules are about."""

    name: str
    #: For whoever waits: what is done now.
    title: str
    #: What may be looked at there, the tap's rules aside.
    rules: tuple[Rule, ...]
    #: What fails where the daemon dies in it.
    blame: Rule
    #: Raises :class:`~vduse.check.errors.CheckError` where it ends early.
    run: Callable[[Stage], None]
    #: It needs requests: a block device.
    blk: bool = True
