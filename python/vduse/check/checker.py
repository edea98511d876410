"""Runs the scenarios on one device, and gives every rule its verdict."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from threading import Event

from vduse.bus.errors import DeviceRefused, DeviceTimedOut
from vduse.check import rules
from vduse.check.errors import Broken, CheckError, Died, Missed, Stopped
from vduse.check.report import Report
from vduse.check.scenario import Scenario
from vduse.check.scenarios import SCENARIOS
from vduse.check.stage import Stage, Timing
from vduse.check.watch import Watch, WatchedDevice
from vduse.framework import Framework

log = logging.getLogger(__name__)


def check(
    framework: Framework,
    name: str,
    watch: Watch,
    *,
    kill: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
    stop: Event | None = None,
    timing: Timing | None = None,
    scenarios: Sequence[Scenario] = SCENARIOS,
) -> Report:
    """Checks the device ``name``, which is bound to vhost_vdpa and opened by nobody. What is in
    the first blocks of a disk is lost.

    ``watch``: the framework's tap. ``kill``: SIGKILL to the daemon, and waits until its successor
    serves the device; raises where none does. ``say``: a line for whoever waits. ``stop``, once
    set, ends the check soon. DeviceNotFound, NoDriver, DeviceBusy."""
    watched = watch.device(name)
    try:
        driver = framework.bus.vhost(name).open()
    except DeviceTimedOut:
        return _ended(watched, rules.MESSAGE_IN_TIME)
    except DeviceRefused:
        return _ended(watched, rules.RESET_AGAIN)
    try:
        stage = Stage(
            framework, name, driver, watched, timing or Timing(), say, kill, stop or Event()
        )
        _run(stage, scenarios)
    finally:
        if not watched.open:
            # Its reset would wait for a daemon that is no more.
            framework.device(name).messages.break_device("the daemon died in a check", logging.INFO)
        driver.close()
        watched.on_closed = None
    watched.finish()
    return Report(name, tuple(watched.ledger.verdicts()))


def _ended(watched: WatchedDevice, rule: rules.Rule) -> Report:
    """At the very first message."""
    watched.ledger.fail(rule, f"the first reset\n{watched.tail()}")
    return Report(watched.name, tuple(watched.ledger.verdicts()))


def _run(stage: Stage, scenarios: Sequence[Scenario]) -> None:
    gone: str | None = None
    for scenario in scenarios:
        if gone is None and scenario.blk and not stage.is_blk:
            stage.ledger.miss(scenario.rules, "not a block device: its requests are not known here")
        elif gone is None:
            stage.say(scenario.title)
            gone = _play(stage, scenario)
        else:
            stage.ledger.miss(scenario.rules, gone)


def _play(stage: Stage, scenario: Scenario) -> str | None:
    """Runs one; why nothing can follow, None where the next one can."""
    why = ""
    try:
        scenario.run(stage)
        return None
    except Died as error:
        why = f"the daemon died in {scenario.name}: {error}"
        stage.ledger.fail(scenario.blame, f"{why}\n{stage.watch.tail()}")
        return _revive(stage, why)
    except Stopped as error:
        why = str(error)
        return why
    except Broken as error:
        why = f"in {scenario.name}: {error}"
        return why
    except Missed as error:
        why = str(error)
        return None
    except CheckError as error:
        why = f"{scenario.name} ended early: {error}"
        return None
    except OSError as error:
        # No rule's: what the framework refuses, or has not.
        log.warning("%s: %s: %s", stage.name, scenario.name, error)
        why = f"{scenario.name} ended early: {error}"
        return None
    finally:
        stage.ledger.miss(scenario.rules, why or f"nothing in {scenario.name} led there")


def _revive(stage: Stage, why: str) -> str | None:
    try:
        stage.restart()
        return None
    except CheckError:
        return why
