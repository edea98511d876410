"""SIGINT, SIGTERM and SIGHUP become one exception in the main thread, where that is safe."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from vduse.daemon.errors import Stopped

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds in which a signal that comes again is the same one: timeout(1) sends it to the process
#: and to its group.
_AGAIN = 0.1
#: Seconds after which a signal comes again whose exception the interpreter dropped.
_RETRY = 0.01


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
        #: When it came.
        self._first = 0.0
        self._raised = False
        self._twice_ends = False
        #: The next signal is one that comes again.
        self._retried = False
        self._retry: threading.Timer | None = None
        #: Asked when a second signal ends the process: what to say to stderr; empty: nothing.
        self.last_words: Callable[[], str] = str

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the signals, and puts the former handlers back. A SIGHUP that is ignored stays
        so: nohup(1) asks for that."""
        signals = [
            signum
            for signum in _SIGNALS
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN
        ]
        former = {signum: signal.signal(signum, self._on_signal) for signum in signals}
        hook = sys.unraisablehook

        def on_unraisable(dropped: sys.UnraisableHookArgs) -> None:
            if isinstance(dropped.exc_value, Stopped):
                self._retry = self._start_retry()
            else:
                hook(dropped)

        sys.unraisablehook = on_unraisable
        try:
            yield
        finally:
            self._holds += 1  # it is too late for what comes now
            if self._retry is not None:
                self._retry.cancel()
                self._retry.join()
            sys.unraisablehook = hook
            for signum, handler in former.items():
                signal.signal(signum, handler)
            self._holds -= 1

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
            # Raised once at most, where it counts, so nothing can interrupt what follows.
            self._holds = holds

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self._retried:
            self._retried = False
        elif self._pending is None:
            self._pending = signum
            self._first = monotonic()
        elif signum == self._pending and monotonic() - self._first < _AGAIN:
            pass
        elif self._holds and self._twice_ends:
            if words := self.last_words():
                os.write(2, f"vduse: {words}\n".encode(errors="backslashreplace"))
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self._raise_pending()

    def _start_retry(self) -> threading.Timer:
        """What was raised within a ``__del__`` was dropped: the signal comes again, after it."""
        timer = threading.Timer(_RETRY, self._send_again)
        timer.daemon = True
        timer.start()
        return timer

    def _send_again(self) -> None:
        main = threading.main_thread().ident
        assert self._pending is not None and main is not None
        self._retried, self._raised = True, False
        signal.pthread_kill(main, self._pending)

    def _raise_pending(self) -> None:
        if self._pending is not None and not self._raised and self._holds == 0:
            self._raised = True
            raise Stopped(self._pending)
