"""What a service tells systemd, by sd_notify(3)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vduse.daemon import notify


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_ready_is_said_once(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        notify.ready()
        notify.ready()
        assert manager.recv(100) == b"READY=1"
        with pytest.raises(BlockingIOError):
            manager.recv(100)
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("20000000", "", 20.0),
        ("20000000", "mine", 20.0),
        ("20000000", "1", None),
        ("", "mine", None),
        ("0", "mine", None),
        ("-1", "mine", None),
        ("soon", "", None),
    ],
)
def test_watchdog_of_the_environment(
    microseconds: str, pid: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "mine" else pid)
    assert notify.Manager().watchdog == seconds
    assert {"WATCHDOG_USEC", "WATCHDOG_PID"}.isdisjoint(os.environ)


def test_nobody_need_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "relative", f"{tmp_path}/gone"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.ready()
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.ready()
