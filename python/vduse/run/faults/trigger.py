"""When a fault strikes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds between two looks at a counter of requests: nothing tells of one.
_LOOK = 0.005


@dataclass(frozen=True, slots=True)
class Trigger:
    """Either ``after`` or ``every`` is given."""

    #: Requests since the last strike.
    after: int | None = None
    #: Seconds since the last strike.
    every: float | None = None
    #: Strikes in all; None: no limit.
    times: int | None = None

    def wait(self, stop: threading.Event, requests: Callable[[], int], since: int) -> bool:
        """Waits for the next strike; ``requests`` counts, and had counted ``since`` when the last
        strike was over. False: ``stop`` was set."""
        if self.every is not None:
            return not stop.wait(self.every)
        while requests() - since < (self.after or 0):
            if stop.wait(_LOOK):
                return False
        return not stop.is_set()

    def __str__(self) -> str:
        when = f"every {self.every:g} s" if self.every is not None else f"after {self.after}"
        return f"{when}, {self.times} times" if self.times is not None else when
