"""SIGINT, SIGTERM and SIGHUP become one exception, and not where a resource changes hands."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from vduse.daemon.errors import Stopped
from vduse.daemon.signals import Stopper


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_is_raised(signum: signal.Signals, code: int) -> None:
    former = signal.getsignal(signum)
    stopper = Stopper()
    with pytest.raises(Stopped) as stopped, stopper.installed():
        signal.raise_signal(signum)
    assert stopped.value.exit_code == code
    assert signal.getsignal(signum) is former


def test_ignored_hangup_stays_ignored() -> None:
    """nohup(1)."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopper().installed():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_held_signal_is_raised_at_the_end() -> None:
    stopper = Stopper()
    steps = []
    with stopper.installed(), pytest.raises(Stopped):
        with stopper.held():
            with stopper.held():
                signal.raise_signal(signal.SIGTERM)
            steps.append("still held")
        steps.append("not reached")
    assert steps == ["still held"]


def test_second_signal_does_not_interrupt_the_clean_up() -> None:
    stopper = Stopper()
    with stopper.installed():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_second_signal_while_the_first_is_held_ends_the_process_where_it_may() -> None:
    program = """
import signal
from vduse.daemon.signals import Stopper

stopper = Stopper()
with stopper.installed(), stopper.held(twice_ends=True), stopper.held():
    signal.raise_signal(signal.SIGINT)
    print("held", flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"held\n")


def test_the_same_signal_twice_at_once_is_one() -> None:
    program = """
import signal
from vduse.daemon.errors import Stopped
from vduse.daemon.signals import Stopper

stopper = Stopper()
try:
    with stopper.installed(), stopper.held(twice_ends=True):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # as timeout(1) does
except Stopped:
    print("in order")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"in order\n")


def test_signal_within_a_finalizer_is_raised_after_it(capfd: pytest.CaptureFixture[str]) -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    stopper, hook = Stopper(), sys.unraisablehook
    with stopper.installed(), pytest.raises(Stopped) as stopped:
        for _ in range(3):
            Dying()  # the interpreter drops what is raised in there
        threading.Event().wait(60)
        pytest.fail("the signal was lost")
    assert stopped.value.exit_code == 143
    assert capfd.readouterr().err == ""
    assert sys.unraisablehook is hook


def test_other_exceptions_in_a_finalizer_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise OSError

    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    with Stopper().installed():
        Failing()
    assert told == [OSError]


def test_held_signal_does_not_hide_an_error() -> None:
    stopper = Stopper()
    with stopper.installed(), pytest.raises(OSError), stopper.held():
        signal.raise_signal(signal.SIGINT)
        raise OSError


def test_work_inside_held_can_be_stopped_and_is_cleaned_up_undisturbed() -> None:
    stopper = Stopper()
    steps = []
    with stopper.installed(), pytest.raises(Stopped), stopper.held():
        try:
            with stopper.released():
                signal.raise_signal(signal.SIGINT)
                steps.append("not reached")
        finally:
            signal.raise_signal(signal.SIGTERM)
            steps.append("cleaned up")
    assert steps == ["cleaned up"]


def test_signal_during_set_up_takes_effect_before_the_work() -> None:
    stopper = Stopper()
    with stopper.installed(), pytest.raises(Stopped), stopper.held():
        signal.raise_signal(signal.SIGINT)
        with stopper.released():
            pytest.fail("the work began")
