"""`vduse doctor`: what this host can do, and how to get the rest."""

from __future__ import annotations

import json
import sys

import pytest

from vduse.daemon.doctor import extras, needed
from vduse.daemon.main import main


def test_json_and_text_show_the_same_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["embedded_framework"] is True
    steps = [c["state"] for c in facts["checks"] if c["name"] in ("kernel modules", "control node")]
    assert facts["kernel"] is (steps == ["ok", "ok"])
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for check in facts["checks"]:
        assert check["state"] in ("ok", "limited", "missing")
        assert f"{check['state']:8} {check['name']:16} {check['detail']}" in shown
        assert bool(check["how"]) == (check["state"] != "ok")
        assert check["how"] in shown


def test_missing_native_module_fails_and_says_how(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("vduse._native", raising=False)
    monkeypatch.setitem(sys.modules, "vduse._native", None)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "missing  native module" in shown
    assert "-> in a checkout: make build" in shown


@pytest.mark.parametrize("probe", ["memfd_create", "eventfd"])
def test_refused_system_call_is_missing(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os." + probe, refuse)
    states = {check().state for check in needed.NEEDED}
    assert states >= {"ok", "missing"}


def test_few_open_files_are_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    check = needed.open_files()
    assert (check.state, check.detail, check.how) == (
        "limited",
        "limit 256: about 6 devices",
        "ulimit -n 4096",
    )


def test_small_locked_memory_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (8 << 20, 8 << 20))
    assert extras.locked_memory().state == "limited"
    monkeypatch.setattr("resource.getrlimit", lambda _: (-1, -1))
    assert extras.locked_memory().detail == "limit unlimited"


def test_pressure_source_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    readable = {"/proc/self/cgroup": "0::/x", "/sys/fs/cgroup/x/memory.events": "low 0"}
    monkeypatch.setattr(extras, "_read", readable.get)
    assert extras.memory_pressure().detail == "no PSI; /sys/fs/cgroup/x/memory.events stands in"
    monkeypatch.setattr(extras, "_read", lambda _: None)
    assert extras.memory_pressure().state == "limited"
