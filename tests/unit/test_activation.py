"""Sockets that a service manager passes: their names, and one user each."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vduse.daemon.activation import Sockets, names
from vduse.exports.errors import ExportError
from vduse.exports.listen_inherited import InheritedListener


@pytest.mark.parametrize(
    ("count", "called", "found"),
    [
        ("2", "qmp:nbd", {3: "qmp", 4: "nbd"}),
        ("2", "qmp", {3: "qmp", 4: "unknown"}),
        ("1", None, {3: ""}),
        ("0", "", {}),
        ("-1", "", {}),
        ("many", "", {}),
        ("9" * 30, "", {}),
        (None, "qmp", {}),
    ],
)
def test_names_of_the_environment(
    count: str | None, called: str | None, found: dict[int, str]
) -> None:
    given = {"LISTEN_PID": "7", "LISTEN_FDS": count, "LISTEN_FDNAMES": called}
    environment = {name: value for name, value in given.items() if value is not None}
    assert names(environment, 7) == found
    assert names(environment, 8) == {}


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/socket")
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        yield listener


def connected(listening: socket.socket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(listening.getsockname())
    return client


def test_a_socket_is_found_by_name_and_by_number(listening: socket.socket) -> None:
    fd = listening.fileno()
    sockets = Sockets({fd: "nbd"})
    assert not os.get_inheritable(fd)
    for name, shown in (("nbd", f"fd {fd} (nbd)"), (str(fd), f"fd {fd}")):
        listener = sockets.listener(name)
        assert listener.path == shown
        with pytest.raises(BlockingIOError):
            listener.accept()
        with connected(listening) as client, listener.accept() as connection:
            assert not connection.getblocking()
            client.sendall(b"here")
            connection.setblocking(True)
            assert connection.recv(4) == b"here"
        listener.close()


def test_a_socket_has_one_user_at_a_time(listening: socket.socket) -> None:
    fd = listening.fileno()
    sockets = Sockets({fd: "nbd"})
    first = sockets.listener("nbd")
    with pytest.raises(ExportError, match=rf"^fd {fd} \(nbd\) is in use already$"):
        sockets.listener(str(fd))
    first.close()
    # Clients that came meanwhile are the next user's.
    with connected(listening):
        again = sockets.listener("nbd")
        again.accept().close()
    again.close()


def test_names_that_lead_nowhere() -> None:
    twice = Sockets({})
    with pytest.raises(ExportError, match=r"'nbd' was passed .* \(none was passed\)$"):
        twice.listener("nbd")


def test_the_nearest_name_is_told(listening: socket.socket) -> None:
    sockets = Sockets({listening.fileno(): "nbd"})
    with pytest.raises(ExportError, match="did you mean 'nbd'"):
        sockets.listener("ndb")
    with pytest.raises(ExportError, match=r"\(there are nbd\)$"):
        sockets.listener("monitor")


def test_two_sockets_of_one_name_are_told_apart_by_number(listening: socket.socket) -> None:
    other = os.dup(listening.fileno())
    try:
        sockets = Sockets({listening.fileno(): "nbd", other: "nbd"})
        with pytest.raises(ExportError, match=f"and {other} are called 'nbd': say a number"):
            sockets.listener("nbd")
        sockets.listener(str(other)).close()
    finally:
        os.close(other)


def test_what_does_not_listen_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent, (tmp_path / "file").open("w") as file:
        for fd, why in (
            (silent.fileno(), "does not listen"),
            (file.fileno(), "is no socket"),
            (1 << 20, "is not open"),
            (1 << 70, "is not open"),
        ):
            with pytest.raises(ExportError, match=f"^x {why}$"):
                InheritedListener(fd, "x")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        pytest.raises(ExportError, match=r"^x is no stream socket$"),
    ):
        InheritedListener(datagrams.fileno(), "x")


def test_requests_at_a_port_are_not_held_back() -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen()
        listener = InheritedListener(port.fileno(), "x")
        with socket.create_connection(port.getsockname()), listener.accept() as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        listener.close()
