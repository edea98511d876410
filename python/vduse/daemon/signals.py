"""SIGINT and SIGTERM become one exception in the main thread, and only where that is safe."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vduse.daemon.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopper:
    """Raises :class:`Stopped` once, and never while :meth:`held`.

    Code that owns resources takes and returns them held, and releases around its work::

        with stopper.held(), ExitStack() as stack:
            disk = stack.enter_context(open_disk())
            with stopper.released():
                work(disk)
    """

    def __init__(self) -> None:
        self._holds = 0
        self._pending: int | None = None
        self._raised = False
        self._twice_ends = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals, and puts the former handlers back."""
        former = {signum: signal.signal(signum, self._on_signal) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in former.items():
                signal.signal(signum, handler)

    @contextmanager
    def held(self, *, twice_ends: bool = False) -> Iterator[None]:
        """A signal that arrives inside takes effect at the end. ``twice_ends``: a second one ends
        the process at once, as the system does it, for who does not want to wait."""
        former, self._twice_ends = self._twice_ends, self._twice_ends or twice_ends
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self._twice_ends = former
        self._raise_pending()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Inside :meth:`held`: a signal takes effect at once."""
        holds, self._holds = self._holds, 0
        try:
            self._raise_pending()
            yield
        finally:
            # Raised once at most, so nothing can interrupt what follows.
            self._holds = holds

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self._pending is None:
            self._pending = signum
        elif self._holds and self._twice_ends:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self._raise_pending()

    def _raise_pending(self) -> None:
        if self._pending is not None and not self._raised and self._holds == 0:
            self._raised = True
            raise Stopped(self._pending)
