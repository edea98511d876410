"""Operations of the kernel's bus that wait for a device's program, and who keeps them waiting."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from typing import TypeVar

from vduse.daemon.dev.errors import KernelRefused, Step, explain
from vduse.vdpa.users import programs

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds after which it is said who is waited for.
_SOON = 2.0
#: Seconds for what asks no program anything; the kernel's lock may be held by what does.
_READ_TIMEOUT = 5.0
#: Seconds beyond msg_timeout; then the wait is not for an answer.
_GRACE = 60.0

NODES = Path("/dev/vduse")
CLASS = Path("/sys/class/vduse")


def msg_timeout(name: str) -> float:
    """Seconds that the kernel waits for the device's program; 0: for ever, or it is no device of
    VDUSE."""
    try:
        return float((CLASS / name / "msg_timeout").read_text())
    except OSError:
        return 0.0


def is_served(name: str) -> bool:
    """Whether a program has the device's node open: it has one opener at a time. True also where
    this user may not open it."""
    try:
        os.close(os.open(NODES / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EBUSY, errno.EACCES)
    return False


def silence(name: str) -> str:
    """Why the device's program may not answer, and what wakes it; for people to read."""
    holders = programs(NODES / name)
    if not holders:
        return f"no program serves {name}"
    [program, *_] = holders
    if program.stopped:
        return f"its program, {program}, is stopped (kill -CONT {program.pid})"
    return f"its program, {program}, does not answer"


def perform(step: Step, name: str, call: Callable[[], None]) -> str | None:
    """Runs what the kernel asks the device's program about. Where the kernel has given the device
    up meanwhile: why, and the way back; None: all is well. KernelRefused: ``call`` failed."""
    limit = msg_timeout(name)
    begin = monotonic()
    ended = _on_thread(call)
    error = None
    try:
        error = _ended(ended, _SOON)
    except TimeoutError:
        seconds = f"at most {limit:g} s" if limit else "for ever"
        log.warning("%s: the kernel waits, %s: %s", name, seconds, silence(name))
        try:
            error = _ended(ended, limit + _GRACE)
        except TimeoutError:
            raise KernelRefused(
                f"{name}: the kernel has not ended this in {limit + _GRACE:g} s, and goes on: "
                f"{silence(name)}; its log says more: dmesg"
            ) from None
    given_up = _way_back(name, limit) if 0 < limit <= monotonic() - begin else None
    if isinstance(error, OSError):
        refused = explain(error, step, name)
        raise KernelRefused(f"{refused}; {given_up}" if given_up else str(refused)) from error
    if error is not None:
        raise error
    return given_up


def read(step: Step, name: str, call: Callable[[], T]) -> T:
    """Runs what asks no program anything. KernelRefused: also where the bus is busy."""
    ended = _on_thread(call)
    try:
        error = _ended(ended, _READ_TIMEOUT)
    except TimeoutError:
        raise KernelRefused(
            "the kernel's vDPA bus is busy: it waits for a device's program to answer, at most "
            "the seconds of /sys/class/vduse/NAME/msg_timeout: try again"
        ) from None
    if isinstance(error, OSError):
        raise explain(error, step, name) from error
    return ended.result()


def _way_back(name: str, limit: float) -> str:
    holders = programs(NODES / name)
    end = f"end it (kill -9 {holders[0].pid}), then " if holders else ""
    return (
        f"the kernel waited {limit:g} s for {name} (its msg_timeout) and has given it up for good: "
        f"{silence(name)}; {end}vduse dev del {name}, and start it again"
    )


def _on_thread(call: Callable[[], T]) -> Future[T]:
    """Signals are handled meanwhile: in this thread the kernel would hold them back."""
    ended: Future[T] = Future()

    def run() -> None:
        try:
            ended.set_result(call())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, name="vduse-dev", daemon=True).start()
    return ended


def _ended(future: Future[T], seconds: float) -> BaseException | None:
    """TimeoutError: not yet."""
    return future.exception(seconds)
