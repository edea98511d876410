"""A program's life: started, killed, started again, ended with what it has forked."""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.unit.run_fakes import Spawned
from vduse import _native
from vduse.framework import Framework
from vduse.run.backoff import Backoff
from vduse.run.errors import ProgramError
from vduse.run.processes import OneChild, descendants, exit_code, signal_name
from vduse.run.program import Exit, Program

SLEEP = "import signal, sys; print('up', flush=True); signal.pause()"
#: Ends in order at SIGTERM.
POLITE = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); {SLEEP}"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
FORKS = f"import os; os.fork(); {SLEEP}"


class Watched:
    """What the watcher was told, in order."""

    def __init__(self) -> None:
        self.told: queue.Queue[Any] = queue.Queue()

    def started(self, pid: int, starts: int) -> None:
        self.told.put(("started", pid, starts))

    def set_up(self, device: object) -> None:
        raise AssertionError("no device")

    def exited(self, exit: Exit) -> None:
        self.told.put(exit)

    def ended(self) -> None:
        self.told.put("ended")

    def next(self) -> Any:
        return self.told.get(timeout=60)


class Stage:
    """A framework, and programs written in Python on it."""

    def __init__(self, framework: Framework) -> None:
        self.framework = framework
        self.watched = Watched()
        self.out_read, self.out = os.pipe()

    def program(self, source: str | Sequence[str], **options: Any) -> Program:
        argv = [sys.executable, "-c", source] if isinstance(source, str) else source
        stdio = (0, self.out, 2)
        self.made = Program(
            self.framework, argv, dict(os.environ), self.watched, stdio=stdio, **options
        )
        return self.made

    def until_up(self, times: int = 1) -> None:
        seen = b""
        while seen.count(b"up") < times:
            seen += os.read(self.out_read, 100)

    def close(self) -> None:
        if self.made.pid:
            self.made.end(patience=0)
        os.close(self.out_read)
        os.close(self.out)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(Spawned, "made", [], raising=False)
    monkeypatch.setattr(_native, "Supervised", Spawned, raising=False)
    with Framework(bounce_size=1 << 20) as framework:
        made = Stage(framework)
        yield made
        made.close()


def test_one_that_ends_by_itself(stage: Stage) -> None:
    program = stage.program("raise SystemExit(3)")
    program.start()
    assert stage.watched.next() == ("started", program.pid, 1)
    assert stage.watched.next() == Exit(program.pid, 3, None, None)
    assert stage.watched.next() == "ended"
    assert program.exit_code == 3
    assert Spawned.made[0].closed.is_set()


def test_one_that_a_signal_ends(stage: Stage) -> None:
    program = stage.program("import os; os.abort()")
    program.start()
    stage.watched.next()
    assert stage.watched.next() == Exit(program.pid, 134, "SIGABRT", None)


def test_one_that_cannot_be_started(stage: Stage) -> None:
    program = stage.program(["/no/such/program"])
    with pytest.raises(ProgramError, match="No such file"):
        program.start()
    assert stage.watched.told.empty()


@pytest.mark.parametrize(("source", "code"), [(POLITE, 0), (SLEEP, 0)])
def test_end_is_sigterm(stage: Stage, source: str, code: int) -> None:
    program = stage.program(source)
    program.start()
    stage.until_up()
    assert program.end()
    assert program.exit_code == code


def test_end_is_sigkill_for_who_does_not_hear(stage: Stage) -> None:
    program = stage.program(DEAF)
    program.start()
    stage.until_up()
    assert not program.end(patience=0.01)
    assert program.exit_code == 128 + signal.SIGKILL


def test_killed_and_started_again_at_once(stage: Stage) -> None:
    program = stage.program(SLEEP)
    program.start()
    stage.until_up()
    first = program.pid
    stage.watched.next()
    program.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert stage.watched.next() == Exit(first, 137, "SIGKILL", 0.0)
    event, second, starts = stage.watched.next()
    assert (event, starts) == ("started", 2)
    assert second != first
    stage.until_up()


def test_restart_where_it_fails_until_it_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "FIRST", 0.0)
    monkeypatch.setattr(Backoff, "TRIES", 3)
    program = stage.program("raise SystemExit(1)", restart=True)
    program.start()
    seen = [stage.watched.next() for _ in range(7)]
    assert [told.restart for told in seen if isinstance(told, Exit)] == [0.0, 0.0, None]
    assert seen[-1] == "ended"
    assert program.exit_code == 1


def test_no_restart_after_success(stage: Stage) -> None:
    program = stage.program("pass", restart=True)
    program.start()
    stage.watched.next()
    assert stage.watched.next() == Exit(program.pid, 0, None, None)
    assert stage.watched.next() == "ended"


def test_end_does_not_wait_for_a_restart(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "FIRST", 3600.0)
    monkeypatch.setattr(Backoff, "MOST", 3600.0)
    program = stage.program("raise SystemExit(1)", restart=True)
    program.start()
    stage.watched.next()
    assert stage.watched.next().restart == 3600.0
    assert program.end()
    assert stage.watched.next() == "ended"


def test_what_it_has_forked_ends_with_it(stage: Stage) -> None:
    program = stage.program(FORKS)
    program.start()
    stage.until_up(2)
    [child] = descendants(program.pid)
    watch = select.poll()
    fd = os.pidfd_open(child)
    watch.register(fd, select.POLLIN)
    assert program.end()
    assert watch.poll(60_000)  # it has ended
    os.close(fd)


def test_closed_framework_starts_nothing_again(stage: Stage) -> None:
    program = stage.program(SLEEP)
    program.start()
    stage.until_up()
    stage.framework.close()
    program.kill()
    stage.watched.next()
    assert isinstance(stage.watched.next(), Exit)
    assert stage.watched.next() == "ended"


# --- what it is made of ----------------------------------------------------------------------


def test_backoff_doubles_to_its_bound_and_forgives() -> None:
    backoff = Backoff()
    delays = [backoff.after(0.0) for _ in range(Backoff.TRIES - 1)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert backoff.after(Backoff.LIVED) == 0.1
    for _ in range(Backoff.TRIES - 2):
        assert backoff.after(0.0) is not None
    assert backoff.after(0.0) is None


@pytest.mark.parametrize(
    ("source", "code", "name"),
    [
        ("raise SystemExit(7)", 7, None),
        ("import os; os.kill(os.getpid(), 9)", 137, "SIGKILL"),
        ("import os; os.kill(os.getpid(), 36)", 164, "signal 36"),
    ],
)
def test_wait_status_as_a_shell_has_it(source: str, code: int, name: str | None) -> None:
    child = subprocess.Popen([sys.executable, "-c", source])
    pid, status = OneChild(child.pid).wait()
    child.returncode = 0
    assert pid == child.pid
    assert (exit_code(status), signal_name(status)) == (code, name)
