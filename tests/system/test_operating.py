"""A daemon as its operators see it: metrics, `vduse health`, `vduse top`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.nbd_clients import JOBS, fio_verified
from tests.system.nbd_servers import NbdServer, qemu_nbd
from tests.system.test_blk_command import Command, command
from tests.unit.qmp_client import QmpClient
from tests.waiting import eventually
from vduse.daemon.main import main
from vduse.daemon.watch.top import run

MIB = 1 << 20
#: Seconds; a watchdog.
LIMIT = 60.0


def scrape(path: Path) -> dict[str, float]:
    """Each metric, added up over its labels."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            name = sample.name + (f"[{sample.labels['type']}]" if "type" in sample.labels else "")
            found[name] = found.get(name, 0) + sample.value
    return found


def health(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[int, Any]:
    """The exit code, and the facts or the error."""
    capsys.readouterr()
    code = main(["health", str(path), "--json", *options])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else said.err


@pytest.mark.needs("fio")
def test_metrics_are_what_fio_did(tmp_path: Path) -> None:
    with command(tmp_path, "memory", "--size", "64M", "--metrics", "unix:m.sock") as served:
        served.until("nbd+unix")
        did = fio_verified(served.uri, tmp_path, bs="4k", size="2m")
        assert did.error == 0
        found = scrape(tmp_path / "m.sock")
        assert served.end()[0] == 0
    assert found["vduse_read_bytes_total"] == did.read_bytes == JOBS * 2 * MIB
    assert found["vduse_written_bytes_total"] == did.written_bytes
    assert found["vduse_requests_total[read]"] == did.read
    assert found["vduse_requests_total[write]"] == did.written
    count = "vduse_request_duration_seconds_count"
    assert (found[f"{count}[read]"], found[f"{count}[write]"]) == (did.read, did.written)
    # fio ran for longer than any request did.
    assert 0 < found["vduse_request_duration_seconds_sum[read]"] < LIMIT * did.read
    assert found["vduse_request_errors_total"] == found["vduse_requests_in_flight"] == 0
    assert not (tmp_path / "m.sock").exists()


def test_metrics_where_another_listens_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "m.sock"))
        other.listen()
        with command(tmp_path, "null", "--size", "1M", "--metrics", "unix:m.sock") as served:
            assert served.process.wait(LIMIT) == 2
            assert served.process.stderr is not None
            said = served.process.stderr.read()
    assert said == (
        "vduse: error: metrics: m.sock: another server listens there: "
        "stop it, or name another path\n"
    )


@contextmanager
def on_nbd(folder: Path) -> Iterator[tuple[NbdServer, Command]]:
    """`vduse blk` on qemu-nbd, with all that operators ask."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    with (
        qemu_nbd(folder, image) as server,
        command(
            folder, server.spec, "--qmp", "q.sock", "--metrics", "unix:m.sock", "--log-format=json"
        ) as served,
    ):
        served.until("nbd+unix")
        yield server, served


@pytest.mark.needs("qemu-nbd", "qemu-io")
def test_health_tells_of_a_server_that_stalls_and_one_that_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qmp = tmp_path / "q.sock"
    with on_nbd(tmp_path) as (server, served):
        code, facts = health(capsys, qmp)
        assert (code, facts["status"], facts["exports"]) == (0, "ok", 1)

        server.stall()
        reader = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-c", "read 0 4096", served.uri], stdout=subprocess.DEVNULL
        )
        eventually(lambda: health(capsys, qmp, "--stuck-after=1")[0] == 1, "stuck")
        code, facts = health(capsys, qmp, "--stuck-after=1")
        [trouble] = facts["troubles"]
        assert (code, facts["status"], trouble["kind"]) == (1, "degraded", "stuck")
        assert trouble["subject"] == "disk0" and "1 in flight, the oldest for" in trouble["text"]
        found = scrape(tmp_path / "m.sock")
        assert found["vduse_oldest_request_seconds"] > 1
        assert found["vduse_backend_connected"] == 1

        server.go_on()
        assert reader.wait(LIMIT) == 0
        eventually(lambda: health(capsys, qmp, "--stuck-after=1")[0] == 0, "well again")

        server.kill()
        eventually(lambda: health(capsys, qmp)[0] == 1, "the connection is lost")
        _, facts = health(capsys, qmp)
        assert [trouble["kind"] for trouble in facts["troubles"]] == ["connection"]
        assert scrape(tmp_path / "m.sock")["vduse_backend_connected"] == 0

        server.start()
        eventually(lambda: health(capsys, qmp)[0] == 0, "the connection is back")
        assert scrape(tmp_path / "m.sock")["vduse_backend_reconnections_total"] >= 1
        code, _, err = served.end()
        assert code == 0
    # The loss is in the log, and says whose.
    records = [json.loads(line) for line in err.splitlines()]
    lost = [each for each in records if "connection: lost: " in each["message"]]
    assert {each["device"] for each in lost} == {"disk0"} and lost[0]["level"] == "warning"


def test_health_of_who_is_not_there_or_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_TIMEOUT", 0.2)
    code, error = health(capsys, tmp_path / "nobody.sock")
    assert code == 2
    assert error.startswith(f"vduse: error: {tmp_path}/nobody.sock: no such socket; ")
    (image := tmp_path / "a.img").touch()
    code, error = health(capsys, image)
    said = f"vduse: error: {image}: is a file and no socket: name a monitor's\n"
    assert (code, error) == (2, said)
    with command(tmp_path, "null", "--size", "1M", "--qmp", "q.sock") as served:
        served.until("nbd+unix")
        with QmpClient(str(tmp_path / "q.sock")):
            code, error = health(capsys, tmp_path / "q.sock", "--timeout=0.2")
            assert (code, "another QMP client has it" in error) == (2, True)
            assert main(["top", str(tmp_path / "q.sock"), "--once"]) == 2
            assert capsys.readouterr().err == error
        eventually(lambda: health(capsys, tmp_path / "q.sock")[0] == 0, "it is free again")
        assert served.end()[0] == 0


@pytest.mark.parametrize("answer", [b"", b"{}\n", b"[1]\n", b'{"QMP": 1}\nnonsense\n', b"\0" * 999])
def test_health_of_what_is_no_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        served = subprocess.Popen(
            [sys.executable, "-c", _ANSWERS, str(other.fileno()), answer.hex()],
            pass_fds=[other.fileno()],
        )
        code, error = health(capsys, path)
        served.wait(LIMIT)
    assert code == 2 and error.startswith(f"vduse: error: {path}: ") and error.count("\n") == 1


_ANSWERS = """
import socket, sys
client, _ = socket.socket(fileno=int(sys.argv[1])).accept()
client.sendall(bytes.fromhex(sys.argv[2]))
client.shutdown(socket.SHUT_WR)
while client.recv(1000):
    pass
"""


def test_top_once_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command(tmp_path, "null", "--size", "1M", "--qmp", "q.sock") as served:
        served.until("nbd+unix")
        once = ["top", str(tmp_path / "q.sock"), "--once", "--interval=0.1"]
        assert main([*once, "--json"]) == 0
        frame = json.loads(capsys.readouterr().out)
        assert (frame["pid"], frame["exports"][0]["id"]) == (served.process.pid, "disk0")
        assert main(once) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and shown.splitlines()[3].split()[:3] == [
            "disk0",
            "disk0",
            "nbd",
        ]
        assert served.end()[0] == 0
    assert main(once) == 2


class Screen:
    """`vduse top` on a terminal."""

    def __init__(self, qmp: Path, *, columns: int) -> None:
        self.fd, inner = pty.openpty()
        self.resize(columns)
        environment = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vduse.daemon", "top", str(qmp), "--interval=0.1"],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=environment,
        )
        os.close(inner)
        self.shown = ""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def until(self, text: str) -> None:
        """Reads on until it has shown that. What was shown before is forgotten."""
        while text not in self.shown:
            data = os.read(self.fd, 1 << 16)
            self.shown += data.decode(errors="replace")
        self.shown = self.shown.partition(text)[2]

    def rest(self) -> str:
        """What it still shows, to its end."""
        try:
            while data := os.read(self.fd, 1 << 16):
                self.shown += data.decode(errors="replace")
        except OSError:  # EIO: nobody has the other end any more
            pass
        os.close(self.fd)
        return self.shown


def test_top_fills_a_terminal_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    with command(tmp_path, "null", "--size", "1M", "--qmp", "q.sock") as served:
        served.until("nbd+unix")
        screen = Screen(tmp_path / "q.sock", columns=200)
        screen.until("\x1b[?1049h")  # the other screen
        screen.until("BACKEND")
        screen.until("local")
        screen.resize(40)
        screen.until("…")  # what does not fit is cut
        screen.resize(200)
        screen.until("BACKEND")
        # A daemon that goes is waited for.
        assert served.end()[0] == 0
        screen.until("no such socket")
        screen.process.send_signal(signal.SIGINT)
        rest = screen.rest()
        assert screen.process.wait(LIMIT) == 0
    assert "\x1b[?1049l" in rest and "\x1b[?25h" in rest
    # The last that was seen stays.
    assert "disk0" in rest.partition("\x1b[?1049l")[2]
