"""Signs of life come from the loops, or not at all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from vduse.daemon.notify import Manager
from vduse.daemon.storage.watchdog import wait


class Counted(Manager):
    """A manager that wants signs of life, and counts them."""

    def __init__(self, watchdog: float | None) -> None:
        super().__init__()
        self.watchdog = watchdog
        self.signs = 0

    def alive(self) -> None:
        self.signs += 1


class Rounds(threading.Event):
    """Set after a number of waits that time out; nothing waits really."""

    def __init__(self, rounds: int, between: Callable[[int], None] = lambda left: None) -> None:
        super().__init__()
        self._left = rounds
        self._between = between
        self.timeouts: set[float | None] = set()

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.add(timeout)
        self._left -= 1
        self._between(self._left)
        return self._left < 0


def at_once(callback: Callable[[], None]) -> None:
    callback()


def test_signs_come_several_times_in_an_interval() -> None:
    manager, rounds = Counted(20.0), Rounds(5)
    wait(rounds, manager, (at_once, at_once))
    assert manager.signs == 5
    assert rounds.timeouts == {5.0}


def test_a_loop_that_hangs_ends_the_signs() -> None:
    manager = Counted(20.0)
    wait(Rounds(5), manager, (at_once, lambda callback: None))
    assert manager.signs == 0


def test_a_loop_that_was_slow_is_not_given_up() -> None:
    manager = Counted(20.0)
    waiting: list[Callable[[], None]] = []

    def between(left: int) -> None:
        if left == 2:  # it hung for three rounds
            waiting.pop()()

    wait(Rounds(5, between), manager, (at_once, waiting.append))
    assert manager.signs == 1
    assert len(waiting) == 1


def test_without_a_watchdog_loops_are_left_alone() -> None:
    asked: list[Callable[[], None]] = []
    wait(Rounds(3), Counted(None), (asked.append,))
    assert asked == []


def test_a_signal_that_another_thread_takes_is_handled() -> None:
    class Interrupted(BaseException):
        """What a signal raises in the main thread."""

    def on_signal(*_: object) -> None:
        raise Interrupted

    class Entered(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            entered.set()
            return super().wait(timeout)

    def take() -> None:
        entered.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

    entered = threading.Event()
    former = signal.signal(signal.SIGUSR2, on_signal)
    taker = threading.Thread(target=take)
    try:
        with pytest.raises(Interrupted):
            taker.start()
            wait(Entered(), Counted(None), ())
    finally:
        signal.signal(signal.SIGUSR2, former)
        taker.join()
