"""Strikes a device with one fault, again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from vduse.run.faults.kind import Fault
from vduse.run.faults.spec import FaultSpec
from vduse.run.faults.target import NotNow, Target
from vduse.run.faults.trigger import Trigger

log = logging.getLogger(__name__)

#: Seconds before the next try, where a device could not be struck.
_LATER = 0.01


@dataclass
class Tally:
    """What became of one fault on one device."""

    fault: str
    device: str
    strikes: int = 0
    failed: int = 0
    #: The last failure, in words.
    error: str | None = None

    def begins(self) -> None:
        """It strikes now."""
        log.warning("%s: fault %s strikes", self.device, self.fault)

    def struck(self, text: str) -> None:
        """It was done."""
        self.strikes += 1
        log.info("%s: fault %s: %s", self.device, self.fault, text)

    def by_itself(self, text: str) -> None:
        """It was done, and nobody knew before that it would be."""
        self.begins()
        self.struck(text)

    def went_wrong(self, text: str) -> None:
        """It was tried, and the device is not as it should be."""
        self.failed += 1
        self.error = text
        log.error("%s: fault %s went wrong: %s", self.device, self.fault, text)

    def line(self) -> str:
        """For people."""
        often = _times(self.strikes) if self.strikes else "never"
        wrong = f"; went wrong {_times(self.failed)}: {self.error}" if self.failed else ""
        return f"{self.fault}: struck {self.device} {often}{wrong}"


class Striker:
    """One fault, one device (or the program behind it), one thread."""

    def __init__(
        self,
        spec: FaultSpec,
        trigger: Trigger,
        fault: Fault,
        target: Target,
        requests: Callable[[], int],
        tally: Tally,
    ) -> None:
        self._trigger = trigger
        self._fault = fault
        self._target = target
        self._requests = requests
        self._tally = tally
        # A program is killed at any time, also while a fault strikes one of its devices.
        self._turn: AbstractContextManager[object] = (
            nullcontext() if spec.kind.of_program else target.turn
        )

    def run(self, stop: threading.Event) -> None:
        """Until it has struck as often as wanted, its device has left or broken, or ``stop``."""
        times = self._trigger.times
        since = 0
        tried = False
        while times is None or self._tally.strikes + self._tally.failed < times:
            if not self._trigger.wait(stop, self._requests, since) or self._has_left():
                return
            if not tried:
                self._tally.begins()
            try:
                with self._turn:
                    self._tally.struck(self._fault.strike(self._target, stop))
            except NotNow as reason:
                if not tried:
                    log.info(
                        "%s: fault %s: not now: %s", self._target.name, self._tally.fault, reason
                    )
                tried = True
                stop.wait(_LATER)
                continue
            except OSError as error:
                if stop.is_set() or self._has_left():
                    return
                self._tally.went_wrong(str(error))
                if self._target.device.messages.broken:
                    return
            since = self._requests()
            tried = False

    def _has_left(self) -> bool:
        framework = self._target.run.framework
        name = self._target.name
        return name not in framework.bus.devices or name not in framework.devices


def _times(number: int) -> str:
    return f"{number} time{'' if number == 1 else 's'}"
