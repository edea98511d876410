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


def test_nobody_need_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "relative", f"{tmp_path}/gone"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.ready()
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.ready()
