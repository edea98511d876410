"""Where vhost-user front ends come from: they connect to us, or we to them."""

from __future__ import annotations

import errno
import grp
import logging
import os
import pwd
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.vhost_user_front_end import Device, FrontEnd, u64
from vduse.control.vhost_user import Request
from vduse.daemon.values import group, user
from vduse.exports.errors import ExportError
from vduse.exports.vhost_user import Connecting, Listening, VhostUserServer


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A VMM's socket; its file stays, as a killed one's."""
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.settimeout(60)
        listener.listen()
        yield listener


def accepted(listener: socket.socket) -> FrontEnd:
    connection, _ = listener.accept()
    return FrontEnd(connection)


@pytest.fixture
def device() -> Device:
    return Device()


# --- connecting ------------------------------------------------------------------------------


def test_a_front_end_that_comes_later_and_comes_back(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "vmm.sock"
    with VhostUserServer(device, Connecting(path)) as server:
        for served in (1, 2):
            with listening(path) as listener:
                front_end = accepted(listener)
                assert front_end.get(Request.GET_QUEUE_NUM) == u64(4)
                assert server.stats() == {"connections": served, "connected": 1}
            front_end.close()
            assert device.driver.closed.wait(60)
    assert path.exists(), "the socket is the front end's"


def test_a_front_end_that_is_not_there_is_one_line_in_the_log(
    device: Device,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = threading.Semaphore(0)
    connect = Connecting._connect

    def counted(self: Connecting) -> socket.socket | None:
        try:
            return connect(self)
        finally:
            tried.release()

    monkeypatch.setattr(Connecting, "_connect", counted)
    path = tmp_path / "vmm.sock"
    with VhostUserServer(device, Connecting(path)):
        for _ in range(4):
            assert tried.acquire(timeout=60)
    [record] = caplog.records
    assert record.getMessage() == (
        f"{path}: not connected: No such file or directory; trying until a front end listens there"
    )


def test_what_is_no_socket_is_not_connected_to(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    with pytest.raises(ExportError, match="no socket"):
        Connecting(path)


def test_pauses_grow_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every connection ends at once."""
    pauses: list[float] = []

    def readable(timeout: float, *files: object) -> bool:
        pauses.append(timeout)
        return len(pauses) == 8

    monkeypatch.setattr("vduse.exports.vhost_user.front_ends._readable", readable)
    path = tmp_path / "vmm.sock"
    front_ends = Connecting(path)
    monkeypatch.setattr("vduse.exports.vhost_user.front_ends.monotonic", lambda: 1e9)
    ours, theirs = socket.socketpair()
    with ours, theirs, listening(path):
        while (connection := front_ends.next(ours)) is not None:
            connection.close()
    assert pauses == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_close_while_nobody_is_there(device: Device, tmp_path: Path) -> None:
    server = VhostUserServer(device, Connecting(tmp_path / "vmm.sock"))
    assert server.close()
    assert server.close()


def test_a_full_backlog_is_tried_again(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "vmm.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.settimeout(60)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            with VhostUserServer(device, Connecting(path)):
                listener.accept()[0].close()
                front_end = accepted(listener)
                assert front_end.get(Request.GET_QUEUE_NUM) == u64(4)
                front_end.close()


@pytest.mark.parametrize("path", ["", "x" * 108])
def test_a_path_that_no_socket_has(path: str) -> None:
    with pytest.raises(ExportError, match=r"no path|108 bytes"):
        Connecting(path)


# --- listening -------------------------------------------------------------------------------


def test_owner_group_and_mode(tmp_path: Path) -> None:
    owner, group = (1234, 5678) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    front_ends = Listening(tmp_path / "socket", mode=0o660, owner=owner, group=group)
    found = os.stat(tmp_path / "socket")
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (owner, group, 0o660)
    front_ends.close()


def test_owner_that_may_not_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refused)
    with pytest.raises(ExportError, match="cannot be given to that owner or group"):
        Listening(tmp_path / "socket", owner=0)
    assert list(tmp_path.iterdir()) == []


def test_names_and_numbers_of_users_and_groups() -> None:
    me, mine = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    assert (user(me.pw_name), user("1234"), user("0")) == (me.pw_uid, 1234, 0)
    assert (group(mine.gr_name), group("1234")) == (mine.gr_gid, 1234)


@pytest.mark.parametrize("text", ["", "no-such-name", "-1", "4294967295", "a\0b", "1 2"])
def test_names_that_nobody_has(text: str) -> None:
    with pytest.raises(ValueError, match="is no user here: name one, or its number"):
        user(text)
    with pytest.raises(ValueError, match="is no group here"):
        group(text)


# --- the end ---------------------------------------------------------------------------------


def test_a_device_that_does_not_answer_ends_a_close_that_is_bounded(
    device: Device, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = VhostUserServer(device, tmp_path / "socket")
    front_end = FrontEnd(server.path)
    front_end.get(Request.GET_QUEUE_NUM)
    answer = threading.Event()
    close = device.driver.close
    device.driver.close = lambda: (answer.wait(60), close())
    assert not server.close(0.0)
    assert not (tmp_path / "socket").exists()
    answer.set()
    server._thread.join(60)
    assert device.driver.closed.is_set()
    front_end.close()
