"""The metrics' HTTP endpoint, and clients that are slow, rude or many."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vduse.daemon.watch import endpoint
from vduse.daemon.watch.endpoint import MOST_CLIENTS, MOST_HEAD, MetricsEndpoint
from vduse.daemon.watch.options import address, host_and_port
from vduse.exports.listen import UnixListener
from vduse.exports.listen_tcp import TcpListener

LIMIT = 60.0
_BIG = b"x" * (8 << 20)


class Stage:
    """An endpoint at a socket; what it renders is as long as it is told."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.accepted: list[str] = []
        self.endpoint = MetricsEndpoint(UnixListener(self.path, 0o600), self._render)

    def _render(self, accept: str) -> tuple[bytes, str]:
        self.accepted.append(accept)
        if accept == "fault":
            raise ValueError("a fault")
        return _BIG if accept == "big" else b"metrics\n", "text/plain"

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(LIMIT)
        client.connect(self.path)
        return client

    def ask(self, request: bytes = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
        """All of the answer, until the connection ends."""
        with self.connect() as client:
            with contextlib.suppress(BrokenPipeError):  # refused before all of it has come
                client.sendall(request)
            return ended(client)


def ended(client: socket.socket) -> bytes:
    found = b""
    try:
        while data := client.recv(1 << 16):
            found += data
    except ConnectionResetError:
        pass
    return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    found = Stage(tmp_path / "metrics.sock")
    yield found
    found.endpoint.close()


def test_the_metrics_are_at_their_path(stage: Stage) -> None:
    head, _, body = stage.ask(
        b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\naccept:  text/plain \r\n\r\n"
    ).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"Content-Length: 8\r\n" in head
    assert (body, stage.accepted) == (b"metrics\n", ["text/plain"])
    head, _, body = stage.ask(b"HEAD /metrics HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b"Content-Length: 8" in head and body == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * MOST_HEAD + b"\r\n\r\n", 431),
        (b"a" * (4 * MOST_HEAD), 431),
    ],
)
def test_what_is_no_request_for_them_is_refused(stage: Stage, request_: bytes, status: int) -> None:
    assert stage.ask(request_).startswith(f"HTTP/1.1 {status} ".encode())
    assert stage.accepted == []


def test_what_is_allowed_is_told(stage: Stage) -> None:
    """RFC 9110 section 15.5.6."""
    assert b"\r\nAllow: GET, HEAD\r\n" in stage.ask(b"POST /metrics HTTP/1.1\r\n\r\n")


def test_a_fault_ends_its_connection_alone(stage: Stage) -> None:
    assert stage.ask(b"GET /metrics HTTP/1.1\r\nAccept: fault\r\n\r\n") == b""
    assert b"200 OK" in stage.ask()


def test_slow_clients_are_ended_and_make_room(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE", 0.5)
    with ExitStack() as exits:
        clients = [exits.enter_context(stage.connect()) for _ in range(MOST_CLIENTS)]
        silent, unread = clients[::2], clients[1::2]
        for client in unread:
            client.sendall(b"GET /metrics HTTP/1.1\r\nAccept: big\r\n\r\n")
        # It waits in the backlog until one of those is ended; on a busy machine it may be too
        # slow itself.
        deadline = monotonic() + LIMIT
        while not stage.ask().endswith(b"metrics\n"):
            assert monotonic() < deadline
        for client in clients:
            hung_up = select.poll()
            hung_up.register(client, select.POLLHUP)
            assert hung_up.poll(LIMIT * 1000)
        assert [ended(client) for client in silent] == [b""] * len(silent)
        assert all(len(ended(client)) < len(_BIG) for client in unread)


def test_many_at_once_are_all_answered(stage: Stage) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(stage.ask())) for _ in range(4 * MOST_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.startswith(b"HTTP/1.1 200") for answer in found] == [True] * len(threads)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.binary(max_size=300))
def test_noise_ends_its_connection_and_no_more(stage: Stage, noise: bytes) -> None:
    with stage.connect() as client:
        client.sendall(noise)
        client.shutdown(socket.SHUT_WR)
        ended(client)
    assert b"200 OK" in stage.ask()


def test_the_end_comes_with_clients_connected(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "metrics.sock")
    client = stage.connect()
    assert b"200 OK" in stage.ask()
    stage.endpoint.close()
    stage.endpoint.close()
    assert ended(client) == b""
    assert not (tmp_path / "metrics.sock").exists()
    client.close()


def test_a_port_is_served_to_an_ordinary_client() -> None:
    listener = TcpListener("127.0.0.1", "0")
    served = MetricsEndpoint(listener, lambda accept: (b"metrics\n", "text/plain"))
    try:
        client = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=LIMIT)
        client.request("GET", "/metrics")
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, b"metrics\n")
        client.close()
    finally:
        served.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:9123", ("127.0.0.1", "9123")),
        ("[::1]:9123", ("::1", "9123")),
        ("localhost:1", ("localhost", "1")),
        (":9123", ("", "9123")),
    ],
)
def test_addresses_of_ports(text: str, found: tuple[str, str]) -> None:
    assert host_and_port(address(text)) == found


@pytest.mark.parametrize(
    "text", ["", "unix:", "9123", "localhost", "::1:9123", "host:99999", "host:", "host:x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address: use 127"):
        address(text)
    assert address("unix:a b") == "unix:a b"
