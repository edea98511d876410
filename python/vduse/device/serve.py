"""Serves devices until a signal, or until one of them ends: the body of a device program."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol, TextIO


class Served(Protocol):
    """A started device."""

    @property
    def name(self) -> str:
        """The device's name."""

    @property
    def ended(self) -> str | None:
        """Why it answers nothing more; None while it does."""

    def wait(self, timeout: float | None = None) -> str | None:
        """Waits until it ends."""

    def close(self) -> None:
        """Drains and closes."""


def serve_until_signal(start: Callable[[], Served], *, ready: TextIO = sys.stdout) -> int:
    """Starts a device, prints ``ready NAME``, and serves until SIGTERM or SIGINT: then closes it
    in order. The exit code: 0 after a signal, 1 where the device ended by itself.

    For the main thread of a program: it blocks the two signals, which threads started here
    inherit, so that no thread is interrupted."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals | {signal.SIGUSR1})
    device = start()
    print(f"ready {device.name}", file=ready, flush=True)
    _signal_at_end(device)
    received = signal.sigwait(signals | {signal.SIGUSR1})
    reason = device.ended
    device.close()
    if received in signals:
        return 0
    print(f"{device.name}: {reason}", file=sys.stderr)
    return 1


def _signal_at_end(device: Served) -> None:
    """SIGUSR1 for the waiting main thread when the device ends."""

    def watch() -> None:
        device.wait()
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=watch, name="vduse-end", daemon=True).start()
