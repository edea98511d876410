"""The storage daemon and a remote server that takes connections and says nothing."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.qmp_client import TIMEOUT, QmpClient
from tests.waiting import eventually

_PROGRAM = [sys.executable, "-m", "vduse.daemon", "storage-daemon"]


class Silent:
    """A listening socket, whose clients wait for ever."""

    def __init__(self, folder: Path) -> None:
        self.path = f"{folder}/silent.sock"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.settimeout(TIMEOUT)
        self._listening.bind(self.path)
        self._listening.listen()
        self._clients: list[socket.socket] = []

    def wait(self) -> None:
        """For the next client."""
        self._clients.append(self._listening.accept()[0])

    def close(self) -> None:
        for each in (self._listening, *self._clients):
            each.close()


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Silent]:
    found = Silent(tmp_path)
    yield found
    found.close()


def _node(silent: Silent) -> str:
    return f"nbd,node-name=n,server.type=unix,server.path={silent.path}"


def test_sigterm_ends_a_daemon_whose_first_node_does_not_open(silent: Silent) -> None:
    with subprocess.Popen(
        [*_PROGRAM, "--blockdev", _node(silent)], stderr=subprocess.PIPE, text=True
    ) as daemon:
        try:
            silent.wait()
            daemon.send_signal(signal.SIGTERM)
            _, said = daemon.communicate(timeout=TIMEOUT)
        finally:
            daemon.kill()
    assert daemon.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said


def test_quit_ends_a_daemon_while_a_node_is_being_opened(silent: Silent, tmp_path: Path) -> None:
    options = []
    for name in "ab":
        chardev = f"socket,id={name},path={tmp_path}/{name},server=on,wait=off"
        options += ["--chardev", chardev, "--monitor", name]
    pidfile = tmp_path / "pid"
    with subprocess.Popen(
        [*_PROGRAM, *options, "--pidfile", str(pidfile)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            eventually(pidfile.exists, "the pid file")
            with QmpClient(f"{tmp_path}/a") as first, QmpClient(f"{tmp_path}/b") as second:
                server = f'{{"type": "unix", "path": "{silent.path}"}}'
                first.send(
                    b'{"execute": "blockdev-add", "arguments": {"driver": "nbd",'
                    b'"node-name": "n", "server": %b}}' % server.encode()
                )
                silent.wait()
                assert second.call("query-named-block-nodes") == []
                second.call("blockdev-add", driver="null-co", node_name="other")
                second.call("quit")
            _, said = daemon.communicate(timeout=TIMEOUT)
        finally:
            daemon.kill()
    assert daemon.returncode == 0, said
    assert "node 'n' is still being opened: left behind" in said
    assert "Traceback" not in said
