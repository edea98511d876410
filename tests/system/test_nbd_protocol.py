"""The NBD export under libnbd's own Python module, and under clients that no library would be:
NBD protocol document, "Handshake phase" and "Transmission phase"."""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.means import SYSTEM_PYTHON
from tests.system.stage import LogWatch
from tests.unit.nbd_client import FLAGS, GREETING, info, option
from vduse.control.nbd import Option
from vduse.exports.nbd import NbdServer
from vduse.testing.harness import blk_stack

SIZE = 16 << 20
#: Seconds after which something that must happen has not.
LIMIT = 60.0
SCRIPT = Path(__file__).with_name("libnbd_cases.py")
CASES = re.findall(r"^def case_(\w+)", SCRIPT.read_text(), re.MULTILINE)
#: Cases with a test of their own.
_APART = {"read_only", "flood"}

REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY = struct.Struct(">IIQ")
READ, WRITE, DISC = 0, 1, 2


@contextmanager
def served(folder: Path, **options: Any) -> Iterator[NbdServer]:
    with (
        blk_stack(size=SIZE, queues=2, **options) as stack,
        NbdServer(
            stack.disk,
            folder / "disk.sock",
            description="sixteen MiB",
            pool=stack.blk.pool,
            first_worker=stack.blk.first_worker,
            data_path=stack.blk.data_path,
        ) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NbdServer]:
    with served(tmp_path_factory.mktemp("nbd")) as server:
        yield server


@pytest.fixture
def log() -> Iterator[LogWatch]:
    with LogWatch("WARNING") as log:
        yield log


def run(case: str, server: NbdServer) -> None:
    done = subprocess.run(
        [SYSTEM_PYTHON, str(SCRIPT), case, server.uri],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("libnbd")
@pytest.mark.parametrize("case", [case for case in CASES if case not in _APART])
def test_libnbd(case: str, server: NbdServer, log: LogWatch) -> None:
    run(case, server)
    assert log.lines == []


@pytest.mark.needs("libnbd")
def test_libnbd_read_only(tmp_path: Path) -> None:
    with served(tmp_path, read_only=True) as server:
        run("read_only", server)


@pytest.mark.needs("libnbd")
@pytest.mark.parametrize("options", [{"packed": True}, {"queue_size": 4}])
def test_libnbd_on_other_rings(tmp_path: Path, options: dict[str, object]) -> None:
    with served(tmp_path, **options) as server:
        for case in ("commands_with_structured_replies", "many_at_once"):
            run(case, server)


# --- clients that no library would be --------------------------------------------------------


@contextmanager
def connected(server: NbdServer) -> Iterator[socket.socket]:
    """A client in the transmission phase, with simple replies."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT)
        client.connect(server.path)
        client.sendall(FLAGS + option(Option.GO, info("")))
        # Two replies with information and the ACK.
        exactly(client, len(GREETING) + (20 + 12) + (20 + 14) + 20)
        yield client


def exactly(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = client.recv(length - len(data))
        assert more, data
        data += more
    return data


def request(command: int, offset: int, length: int, *, flags: int = 0, cookie: int = 77) -> bytes:
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def error_of(client: socket.socket, cookie: int = 77) -> int:
    """The error of a simple reply."""
    magic, error, found = SIMPLE_REPLY.unpack(exactly(client, SIMPLE_REPLY.size))
    assert (magic, found) == (0x67446698, cookie)
    return int(error)


def check_whole(server: NbdServer) -> None:
    with connected(server) as client:
        client.sendall(request(WRITE, 0, 512) + b"w" * 512 + request(READ, 0, 512, cookie=5))
        replies = {}
        for _ in range(2):
            _, error, cookie = SIMPLE_REPLY.unpack(exactly(client, SIMPLE_REPLY.size))
            replies[cookie] = error
            if cookie == 5:
                exactly(client, 512)
        assert replies == {77: 0, 5: 0}
        client.sendall(request(DISC, 0, 0))
        assert client.recv(1) == b""


def until_closed(client: socket.socket) -> None:
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.parametrize("command", [8, 9, 100, 0xFFFF])
def test_unknown_command_is_einval_and_the_connection_goes_on(
    server: NbdServer, command: int
) -> None:
    with connected(server) as client:
        client.sendall(request(command, 0, 512))
        assert error_of(client) == 22
        client.sendall(request(READ, 0, 512))
        assert error_of(client) == 0


def test_payload_of_a_refused_write_is_skipped(server: NbdServer) -> None:
    with connected(server) as client:
        client.sendall(request(WRITE, 1, 600) + bytes(600) + request(READ, 0, 512, cookie=3))
        assert error_of(client) == 22
        assert error_of(client, cookie=3) == 0


def test_request_without_its_magic_ends_the_connection(server: NbdServer, log: LogWatch) -> None:
    with connected(server) as client:
        client.sendall(bytes(28))
        until_closed(client)
    log.wait_for("nbd disk0: ")
    check_whole(server)


@pytest.mark.parametrize("sent", [1, 27, 28, 28 + 4096, 28 + (1 << 20) - 1])
def test_client_that_vanishes_in_mid_request(server: NbdServer, log: LogWatch, sent: int) -> None:
    with connected(server) as other:
        with connected(server) as client:
            client.sendall((request(WRITE, 0, 1 << 20) + bytes(1 << 20))[:sent])
        log.wait_for("nbd disk0: ")
        other.sendall(request(READ, 0, 512))
        assert error_of(other) == 0
    check_whole(server)


def test_client_that_reads_no_replies_keeps_nobody_waiting(server: NbdServer) -> None:
    with connected(server) as silent:
        silent.setblocking(False)
        wanted = b"".join(request(READ, 0, 1 << 20, cookie=n) for n in range(256))
        try:
            while wanted:
                wanted = wanted[silent.send(wanted) :]
        except BlockingIOError:
            pass
        check_whole(server)


@pytest.mark.needs("libnbd")
def test_killed_client_leaves_the_others_alone(server: NbdServer, log: LogWatch) -> None:
    with subprocess.Popen(
        [SYSTEM_PYTHON, str(SCRIPT), "flood", server.uri], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGKILL)
    log.wait_for("nbd disk0: ")
    check_whole(server)


def test_statistics_count_requests(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        before = server.stats()
        check_whole(server)
        after = server.stats()
    counted = {name: after[name] - before[name] for name in after}
    assert counted["requests"] == 3  # the good-bye is one
    assert (counted["bytes_read"], counted["bytes_written"]) == (512, 512)
    assert (counted["connections"], counted["errors"]) == (1, 0)


def test_close_ends_connections_and_removes_the_socket(tmp_path: Path) -> None:
    with served(tmp_path) as server, connected(server) as client:
        # The acknowledgement is sent before the connection goes to its worker; this is answered
        # there.
        client.sendall(request(WRITE, 0, 512) + bytes(512))
        assert error_of(client) == 0
        assert server.connections == 1
        assert server.close()
        assert client.recv(1) == b""
        assert not Path(server.path).exists()
        assert server.close()
