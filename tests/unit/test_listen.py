"""What can be known of a socket's path before anybody listens there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vduse.exports.errors import ExportError
from vduse.exports.listen import MAX_PATH, UnixListener, check_place


def test_a_free_place_and_a_dead_servers_are_good(tmp_path: Path) -> None:
    path = tmp_path / "s"
    check_place(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    check_place(path)
    assert path.is_socket()  # nobody listens yet: it stays


def test_a_live_servers_place_is_taken(tmp_path: Path) -> None:
    listener = UnixListener(tmp_path / "s", 0o600)
    try:
        with pytest.raises(ExportError, match="another server listens there"):
            check_place(tmp_path / "s")
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("", "the socket has no path"),
        ("x" * (MAX_PATH + 1), "too long for a socket's path"),
        ("no/such/s", "no such directory"),
        ("plain", "is a file and no socket: name another path"),
        (".", "exists and is no socket: name another path"),
        ("plain/s", "no such directory"),
    ],
)
def test_no_place_for_a_socket(
    name: str, refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").touch()
    with pytest.raises(ExportError, match=refusal):
        check_place(name)


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ExportError, match="permission denied"):
        check_place(tmp_path / "s")
