"""When a program that has ended is started again."""

from __future__ import annotations


class Backoff:
    """Seconds between an end and the next start: doubled from one to the next, up to a bound, until
    a program has lived for a while. One that keeps failing is given up."""

    FIRST = 0.1
    MOST = 5.0
    #: Ends in a row after which it is given up.
    TRIES = 8
    #: Seconds of life after which all is forgiven.
    LIVED = 30.0

    def __init__(self) -> None:
        self._ends = 0

    def after(self, lived: float) -> float | None:
        """A program ended after ``lived`` seconds; None: it is not started again."""
        if lived >= self.LIVED:
            self._ends = 0
        self._ends += 1
        if self._ends >= self.TRIES:
            return None
        return min(self.FIRST * 2.0 ** (self._ends - 1), self.MOST)
