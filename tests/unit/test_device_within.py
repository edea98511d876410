"""Work of somebody else's, which may never end, with a bound."""

from __future__ import annotations

import threading

import pytest

from vduse.device.within import StillRunning, together, within

#: Seconds; a watchdog.
_PATIENCE = 60.0


def test_what_it_raises_is_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    within(_PATIENCE, lambda: None, "it")
    with pytest.raises(ValueError, match="no"):
        within(_PATIENCE, fail, "it")


def test_what_does_not_end_is_named() -> None:
    end = threading.Event()
    with pytest.raises(TimeoutError, match=r"^it has not ended within 0\.1 s$"):
        within(0.1, end.wait, "it")
    end.set()


def test_several_run_at_once_and_each_has_its_end() -> None:
    both = threading.Barrier(2, timeout=_PATIENCE)

    def fail() -> None:
        both.wait()
        raise ValueError("no")

    first, second = together(_PATIENCE, [both.wait, fail])
    assert first is None
    assert isinstance(second, ValueError)


def test_several_share_a_bound() -> None:
    end = threading.Event()
    first, second = together(0.1, [end.wait, end.wait])
    assert isinstance(first, StillRunning)
    assert isinstance(second, StillRunning)
    end.set()


def test_more_than_there_are_threads() -> None:
    done: list[int] = []
    assert together(None, [lambda i=i: done.append(i) for i in range(500)]) == [None] * 500
    assert sorted(done) == list(range(500))
    assert together(None, []) == []
