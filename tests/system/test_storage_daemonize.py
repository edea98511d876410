"""`vduse storage-daemon --daemonize`: in the background once it serves."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from tests.unit.qmp_client import QmpClient

_PROGRAM = [sys.executable, "-m", "vduse.daemon", "storage-daemon", "--daemonize"]


def _options(folder: Path) -> list[str]:
    return [
        *("--chardev", f"socket,id=c,path={folder}/qmp.sock,server=on,wait=off"),
        *("--monitor", "c", "--blockdev", "null-co,node-name=n"),
        *("--nbd-server", f"addr.type=unix,addr.path={folder}/nbd.sock"),
        *("--export", "nbd,id=e,node-name=n", "--pidfile", f"{folder}/pid"),
    ]


def test_the_command_ends_when_the_daemon_serves(tmp_path: Path) -> None:
    ran = subprocess.run([*_PROGRAM, *_options(tmp_path)], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("e: 1 GiB")
    pid = int((tmp_path / "pid").read_text())
    watched = os.pidfd_open(pid)
    try:
        assert os.getsid(pid) == pid
        assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
        with QmpClient(f"{tmp_path}/qmp.sock") as client:
            [export] = client.call("query-block-exports")
            assert export["id"] == "e"
            client.call("quit")
    finally:
        _wait(watched, pid)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_told_by_the_command(tmp_path: Path) -> None:
    options = [*_options(tmp_path), "--export", "nbd,id=e,node-name=n"]
    ran = subprocess.run([*_PROGRAM, *options], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "--export nbd,id=e,node-name=n: Block export id 'e' is already in use" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def _wait(pidfd: int, pid: int) -> None:
    """For its end; a daemon that does not come to it is killed."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(60_000):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        raise AssertionError(f"{pid} has not ended")
    os.close(pidfd)
