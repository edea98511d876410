"""What `vduse doctor` says of `vduse run`."""

from __future__ import annotations

import sys

import pytest

from vduse import _native
from vduse.daemon.doctor import run as module
from vduse.daemon.doctor.run import supervision
from vduse.run import checks
from vduse.run.errors import ProgramError


def test_it_works_here() -> None:
    assert supervision().state == "ok"


def test_kernel_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check_host", lambda: checks.check_host("5.10.0"))
    found = supervision()
    assert found.state == "missing"
    assert "5.19 or newer" in found.detail


def test_listener_above(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nested:
        @staticmethod
        def spawn(*_: object, **__: object) -> None:
            raise OSError(16, "there is a seccomp listener above this process already")

    monkeypatch.setattr(_native, "Supervised", Nested)
    found = supervision()
    assert (found.state, found.how) == ("missing", module._HOW)
    assert "listener above this process" in found.detail


def test_program_that_finds_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPENS", "raise SystemExit(7)")
    found = supervision()
    assert found.detail == "a program was not given its /dev/vduse (exit code 7)"


def test_program_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OPENS", "import signal; signal.pause()")
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    found = supervision()
    assert found.detail == "a program was not given its /dev/vduse (not within 0.1 s)"


def test_interpreter_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert supervision().state == "missing"
    with pytest.raises(ProgramError):
        checks.check_program("/no/such/python", {})
