"""How long to wait before a connection is made again."""

from __future__ import annotations

#: Seconds between attempts: the first pause, twice that, and so on up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: Seconds: a connection that was lost sooner counts as an attempt that has failed.
_SHORT = 1.0


class Backoff:
    """Of one connection; times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._made: float | None = None

    def made(self, now: float) -> None:
        """There is a connection."""
        self._made = now

    def pause(self, now: float) -> float:
        """Seconds from now to the next attempt."""
        if self._made is not None and now - self._made >= _SHORT:
            self._pause = 0.0
        self._made = None
        pause = self._pause
        self._pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
        return pause
