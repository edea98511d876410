"""`vduse bench`: what it measures, what it refuses, how it ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.system.test_bad_input import Person
from vduse.backends.python import PythonBackend
from vduse.control.vhost_user import Request
from vduse.daemon.bench import connect, relay, run
from vduse.daemon.main import main
from vduse.testing.harness import blk_stack

SIZE = 16 << 20
SHORT = ("--seconds", "0.05", "--rounds", "2", "--span", "1M")
#: VHOST_USER_F_PROTOCOL_FEATURES.
PROTOCOL_FEATURES = 1 << 30


def command(path: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vduse.daemon", "bench", path, *arguments]


def bench(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, *arguments), capture_output=True, text=True)


def facts(path: str, *arguments: str) -> dict[str, Any]:
    done = bench(path, *SHORT, *arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(path: str, *arguments: str) -> str:
    done = bench(path, *SHORT, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line.removeprefix("vduse: error: ").removeprefix(f"{path}: ")


@pytest.fixture(scope="module")
def scratch() -> Iterator[str]:
    """The socket of a disk that nobody needs."""
    with (
        blk_stack(queue_size=256, size=SIZE, queues=2, packed=True, driver="vhost_vdpa") as stack,
        stack.vhost_user() as path,
    ):
        yield path


# --- what it measures -----------------------------------------------------------------------


def test_random_reads_are_the_default(scratch: str) -> None:
    found = facts(scratch)
    assert found["disk"] == {"size": SIZE, "read_only": False, "queues": 2}
    assert found["load"] == {
        "op": "randread",
        "reads": 100,
        "block_size": 4096,
        "depth": 32,
        "in_flight": 32,
        "queues": 1,
        "queue_size": 256,
        "packed": False,
        "poll": False,
        "span": 1 << 20,
        "verify": False,
    }
    assert len(found["rounds"]) == 2
    for each in found["rounds"]:
        figures = each["figures"]
        assert each["requests"] >= 32 and each["errors"] == 0
        assert figures["iops"] > 0
        assert figures["bytes_per_second"] == pytest.approx(figures["iops"] * 4096)
        assert list(figures["latency_ns"]) == ["p50", "p90", "p99", "p99.9", "max"]
        assert figures["client_cpu_ns"] > 0 and figures["server_cpu_ns"] > 0
    assert (found["errors"], found["messages"], found["ended"]) == (0, [], None)


@pytest.mark.parametrize("how", [(), ("--poll", "--packed")], ids=["sleeping", "polling, packed"])
@pytest.mark.parametrize("op", ["read", "write", "mixed"])
def test_what_is_written_is_read(scratch: str, op: str, how: Sequence[str]) -> None:
    found = facts(scratch, "--op", op, "--queues", "2", "--verify", "--destroy-data", *how)
    assert found["load"]["packed"] == found["load"]["poll"] == bool(how)
    assert found["errors"] == 0, found["messages"]
    # Filling and reading back are the server's work, too.
    assert found["median"]["server_cpu_ns"] is None


def test_the_share_of_reads() -> None:
    with blk_stack(queue_size=256, driver="vhost_vdpa") as stack, stack.vhost_user() as path:
        facts(path, "--op", "mixed", "--reads", "100", "--destroy-data")
        stats = stack.blk.stats()
        assert stats is not None
        assert stats["bytes_read"] > 0 and stats["bytes_written"] == 0
        facts(path, "--op", "mixed", "--reads", "70", "--destroy-data")
        stats = stack.blk.stats()
        assert stats is not None and stats["bytes_written"] > 0


def test_the_table_is_for_people(scratch: str) -> None:
    done = bench(scratch, *SHORT, "--depth", "128", "--pid", f"{os.getpid()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    with open("/proc/self/comm") as comm:
        program = comm.read().strip()
    assert lines[0].startswith(f"{scratch}: 16 MiB, 2 virtqueues, served by {program} (pid ")
    assert lines[1].startswith("randread, 4 KiB, 128 in flight, 1 split virtqueue of 256, the ")
    assert lines[2].startswith("note: the virtqueues have room for 85 requests")
    assert {"1", "2", "median"} <= {line.split()[0] for line in lines[3:] if line.strip()}


# --- what it refuses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("--op", "write"), ("--op", "randwrite"), ("--op", "mixed"), ("--verify",)]
)
def test_nothing_is_written_unless_asked_for_by_name(
    arguments: Sequence[str], tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"precious" * (SIZE // 8))
    with (
        blk_stack(queue_size=256, backend=str(image), driver="vhost_vdpa") as stack,
        stack.vhost_user() as path,
    ):
        line = refused(path, *arguments)
        assert line.endswith(f"behind {path}: add --destroy-data if nobody needs it")
    assert image.read_bytes() == b"precious" * (SIZE // 8)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--queues 3", "virtqueues: 3 asked for, the device has 2"),
        ("--span 1G", f"a span of {1 << 30} bytes is more than the disk's {SIZE} bytes"),
        ("--span 1k", "a span of 1024 bytes does not hold one block of 4096 bytes"),
        ("--reads 70", "--reads goes with --op mixed"),
        ("--block-size 1000", "--block-size 1000 is no multiple of 512 bytes"),
        (
            "--block-size 1M --depth 2048",
            "--depth 2048 of 1 MiB each: that is more than 1 GiB of buffers",
        ),
        ("--pid 4194304", "--pid 4194304: no such process"),
        (
            "--queue-size 1024",
            "queues: reply contains an error (its virtqueues may be smaller than --queue-size "
            "1024)",
        ),
    ],
)
def test_loads_that_cannot_be_made(scratch: str, arguments: str, line: str) -> None:
    assert refused(scratch, *arguments.split()) == line
    assert facts(scratch)["errors"] == 0  # and it serves the next one


def test_a_device_without_packed_rings() -> None:
    with blk_stack(queue_size=256, driver="vhost_vdpa") as stack, stack.vhost_user() as path:
        assert refused(path, "--packed") == "features: the device offers no packed ring"


def test_a_read_only_disk_is_read() -> None:
    with (
        blk_stack(queue_size=256, read_only=True, driver="vhost_vdpa") as stack,
        stack.vhost_user() as path,
    ):
        assert facts(path)["disk"]["read_only"]
        why = "the disk is read-only: it can be read, not verified"
        assert refused(path, "--op", "write", "--destroy-data") == why


def test_paths_that_lead_to_no_server(tmp_path: Path) -> None:
    person = Person(tmp_path)
    left = person.cwd / "left.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    (person.cwd / "file").touch()
    for path, line in (
        ("no.sock", "no.sock: no such socket: check the path, and that the server runs"),
        ("left.sock", "left.sock: nobody listens there: start the server"),
        ("file", "file: not a socket: name one that a vhost-user server listens at"),
        (".", ".: not a socket: name one that a vhost-user server listens at"),
        ("file/x", "file/x: a part of the path is not a folder: check the path"),
    ):
        assert person.refused(f"bench {path}") == line


@contextmanager
def impostor(folder: Path, features: int | None) -> Iterator[str]:
    """A server with these features and no protocol features; None: it hangs up at once."""
    path = str(folder / "impostor.sock")

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while features is not None and (header := connection.recv(12)):
                request, _, length = struct.unpack("<3I", header)
                connection.recv(length) if length else b""
                value = {Request.GET_FEATURES: features, Request.GET_PROTOCOL_FEATURES: 0}
                if request in value:
                    connection.sendall(struct.pack("<3IQ", request, 5, 8, value[request]))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()


@pytest.mark.parametrize(
    ("features", "line"),
    [
        (None, "the server closed the connection: its log may say why"),
        (0, "the server offers no VHOST_USER_F_PROTOCOL_FEATURES, which is needed here"),
        (
            PROTOCOL_FEATURES,
            "the server lacks REPLY_ACK, CONFIG or CONFIGURE_MEM_SLOTS, which are needed here",
        ),
    ],
)
def test_servers_that_do_not_do(tmp_path: Path, features: int | None, line: str) -> None:
    with impostor(tmp_path, features) as path:
        assert refused(path) == line


def test_an_nbd_server_is_told_from_a_vhost_user_one(tmp_path: Path) -> None:
    path = str(tmp_path / "nbd.sock")

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):  # the client goes without a word
            connection.sendall(b"NBDMAGICIHAVEOPT\0\3")
            while connection.recv(1 << 10):
                pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        assert refused(path).startswith("an NBD server listens there: name a vhost-user socket")
        thread.join()


def test_a_server_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connect, "HANDSHAKE", 0.1)
    path = str(tmp_path / "busy.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        assert main(["bench", path]) == 2
    assert "does the server serve another client now?" in capsys.readouterr().err


# --- how it ends ----------------------------------------------------------------------------


class Bad(PythonBackend):
    """Tells of its first read, and keeps nothing of what is written; with ``stuck`` reads wait
    until the end."""

    def __init__(self, stuck: bool = False) -> None:
        self.size = SIZE
        self.asked = threading.Event()
        self.end = threading.Event()
        if not stuck:
            self.end.set()

    def read(self, offset: int, buffer: memoryview) -> None:
        """Zeroes."""
        self.asked.set()
        self.end.wait()
        buffer[:] = bytes(len(buffer))

    def write(self, offset: int, buffer: memoryview) -> None:
        """Nothing."""


@contextmanager
def bad(stuck: bool = False) -> Iterator[tuple[Bad, str]]:
    """Its socket."""
    backend = Bad(stuck)
    try:
        with (
            blk_stack(queue_size=256, backend=backend, driver="vhost_vdpa") as stack,
            stack.vhost_user() as path,
        ):
            try:
                yield backend, path
            finally:
                backend.end.set()
    finally:
        backend.close()


@pytest.mark.parametrize("client", [(), ("--poll",)], ids=["sleeping", "polling"])
def test_a_server_that_goes_in_mid_run(client: Sequence[str]) -> None:
    with bad() as (backend, path):
        process = subprocess.Popen(
            command(path, "--seconds", "600", *client), stdout=subprocess.PIPE, text=True
        )
        assert backend.asked.wait(60)
    out, _ = process.communicate()
    assert process.returncode == 1
    assert out.splitlines()[-1] == "ended early: the server closed the connection"


def test_a_signal_ends_it_at_once() -> None:
    with bad() as (backend, path):
        process = subprocess.Popen(command(path, "--seconds", "600"), stderr=subprocess.PIPE)
        assert backend.asked.wait(60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert (process.returncode, err) == (128 + signal.SIGINT, b"vduse: stopped\n")
        assert facts(path)["errors"] == 0


def test_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    """Wherever temporary files are: no socket could have this path."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with bad() as (backend, path):
        process = subprocess.Popen(
            command(path, "--seconds", "600"), env=os.environ | {"TMPDIR": str(folder)}
        )
        assert backend.asked.wait(60)
        process.kill()
        process.wait()
    assert list(folder.iterdir()) == []


def test_no_place_for_temporary_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scratch: str
) -> None:
    def none(prefix: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(relay, "TemporaryDirectory", none)
    assert main(["bench", scratch]) == 2
    assert capsys.readouterr().err == (
        "vduse: error: no folder for a socket: No usable temporary directory found: set TMPDIR to "
        "one that can be written\n"
    )


def test_requests_that_are_not_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "PATIENCE", 0.1)
    with bad(stuck=True) as (backend, path):
        timer = threading.Timer(60, backend.end.set)
        timer.start()
        assert main(["bench", path, "--json"]) == 1
        timer.cancel()
    found = json.loads(capsys.readouterr().out)
    assert found["rounds"] == [] and found["median"] is None
    assert found["ended"].startswith("no request completed for ")


def test_data_that_is_not_as_written() -> None:
    with bad() as (_, path):
        done = bench(path, *SHORT, "--verify", "--destroy-data")
    assert done.returncode == 1
    assert ": not what was written there\n" in done.stdout


def test_requests_that_fail() -> None:
    with (
        blk_stack(queue_size=256, layers=["error,ops=read"], driver="vhost_vdpa") as stack,
        stack.vhost_user() as path,
    ):
        done = bench(path, *SHORT, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["errors"] == sum(each["requests"] for each in found["rounds"])
    assert len(found["messages"]) == 16
