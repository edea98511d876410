"""`vduse storage-daemon` as a service: readiness, signs of life, the manager's sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.qmp_client import QmpClient
from tests.waiting import eventually

_PROGRAM = [sys.executable, "-m", "vduse.daemon", "storage-daemon"]
#: Seconds; a watchdog.
_PATIENCE = 60.0


class FakeManager:
    """What systemd is to a service: somebody to talk to."""

    def __init__(self, folder: Path) -> None:
        self.address = f"{folder}/notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(_PATIENCE)

    def hear(self, line: str) -> list[str]:
        """All that is said up to the message with this line in it, that one included."""
        said: list[str] = []
        while line not in said:
            said += self._socket.recv(4096).decode().split("\n")
        return said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[FakeManager]:
    fake = FakeManager(tmp_path)
    yield fake
    fake.close()


@contextmanager
def service(
    argv: list[str], manager: FakeManager, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """The program, which is to end in order."""
    process = subprocess.Popen(
        argv,
        env={**os.environ, "NOTIFY_SOCKET": manager.address, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with process:
            yield process
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=_PATIENCE)
            assert process.returncode == 0, out
    finally:
        process.kill()


def options(folder: Path) -> list[str]:
    return [
        *("--chardev", f"socket,id=c,path={folder}/qmp.sock,server=on,wait=off"),
        *("--monitor", "c", "--blockdev", "null-co,node-name=n"),
        *("--nbd-server", f"addr.type=unix,addr.path={folder}/nbd.sock"),
        *("--export", "nbd,id=e,node-name=n"),
    ]


def info(path: str) -> set[str]:
    """Names of the NBD exports there."""
    argv = ["nbdinfo", "--list", "--json", f"nbd+unix:///?socket={path}"]
    asked = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE)
    assert asked.returncode == 0, asked.stderr
    return {export["export-name"] for export in json.loads(asked.stdout)["exports"]}


@pytest.mark.needs("nbdinfo")
def test_ready_is_said_when_everything_answers(manager: FakeManager, tmp_path: Path) -> None:
    with service([*_PROGRAM, *options(tmp_path)], manager) as process:
        assert manager.hear("READY=1")[-1] == "STATUS=exports: 1 nbd"
        with QmpClient(f"{tmp_path}/qmp.sock") as client:
            assert info(f"{tmp_path}/nbd.sock") == {"n"}
            vhost_user = {"addr": {"type": "unix", "path": f"{tmp_path}/vhost-user.sock"}}
            client.call(
                "block-export-add", type="vhost-user-blk", id="v", node_name="n", **vhost_user
            )
            manager.hear("STATUS=exports: 1 nbd, 1 vhost-user-blk")
            client.call("block-export-del", id="v")
            client.call("block-export-del", id="e")
            manager.hear("STATUS=no exports")
            client.call("quit")
            manager.hear("STOPPING=1")
            process.wait(_PATIENCE)


def test_stopping_is_said_after_a_signal(manager: FakeManager, tmp_path: Path) -> None:
    with service([*_PROGRAM, *options(tmp_path)], manager) as process:
        manager.hear("READY=1")
        process.send_signal(signal.SIGTERM)
        manager.hear("STOPPING=1")


def test_signs_of_life_come_again_and_again(manager: FakeManager, tmp_path: Path) -> None:
    with service([*_PROGRAM, *options(tmp_path)], manager, WATCHDOG_USEC="200000"):
        said = manager.hear("READY=1")
        assert "WATCHDOG=1" not in said
        for _ in range(3):
            manager.hear("WATCHDOG=1")


def activated(folder: Path, argv: list[str]) -> list[str]:
    """``argv``, started by the first client of one of two sockets of systemd's."""
    listen = [word for name in ("qmp", "nbd") for word in ("-l", f"{folder}/{name}.sock")]
    kept = ("NOTIFY_SOCKET", "PYTHONPATH")
    through = [word for name in kept if name in (*os.environ, kept[0]) for word in ("-E", name)]
    return ["systemd-socket-activate", *listen, "--fdname=qmp:nbd", *through, *argv]


def wait_for(path: str, process: subprocess.Popen[str]) -> None:
    """For a socket that a process is about to make; its end is a failure."""
    eventually(lambda: os.path.exists(path) or process.poll() is not None, path)
    assert process.poll() is None


@pytest.mark.needs("systemd-socket-activate", "nbdinfo")
def test_a_client_starts_it_at_systemds_sockets(manager: FakeManager, tmp_path: Path) -> None:
    config = tmp_path / "disks.toml"
    config.write_text(
        """
        [chardev.qmp]
        backend = "socket"
        fd = "qmp"
        server = true
        wait = false
        [monitor.qmp]
        chardev = "qmp"
        [blockdev.n]
        driver = "null-co"
        [nbd-server]
        addr = {type = "fd", str = "nbd"}
        [export.e]
        type = "nbd"
        node-name = "n"
        """
    )
    argv = activated(tmp_path, [*_PROGRAM, "--config", str(config)])
    with service(argv, manager) as process:
        wait_for(f"{tmp_path}/nbd.sock", process)
        assert info(f"{tmp_path}/nbd.sock") == {"n"}
        manager.hear("READY=1")
        with QmpClient(f"{tmp_path}/qmp.sock") as client:
            address = {"type": "fd", "data": {"str": "nbd"}}
            client.call("nbd-server-stop")
            client.call("nbd-server-start", addr=address)
            assert info(f"{tmp_path}/nbd.sock") == set()
            taken = {"type": "fd", "data": {"str": "3"}}
            client.call("nbd-server-stop")
            said = client.refusal("nbd-server-start", addr=taken)
            assert said == "fd 3 (qmp) is in use already"
    # They are the manager's.
    assert {path.name for path in tmp_path.glob("*.sock")} == {"qmp.sock", "nbd.sock"}


def test_a_socket_that_nobody_passed_is_named(tmp_path: Path) -> None:
    argv = [*_PROGRAM, "--nbd-server", "addr.type=fd,addr.str=nbd"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE)
    assert ran.returncode == 2
    assert "no socket 'nbd' was passed by a service manager (none was passed)" in ran.stderr
