"""NBD's listening socket and the thread that makes the handshakes."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.system.stage import LogWatch
from tests.unit.nbd_client import FLAGS, GO, GREETING, answers, info, kinds, option
from vduse import _native
from vduse.control.nbd import Option, Reply, TransmissionFlag
from vduse.exports import listen
from vduse.exports.errors import ExportError
from vduse.exports.listen import UnixListener
from vduse.exports.nbd import negotiator
from vduse.exports.nbd.export import Export
from vduse.exports.nbd.handshake import Agreed
from vduse.exports.nbd.negotiator import Listening, Negotiator

DISK = Export("disk0", 1 << 20, TransmissionFlag.HAS_FLAGS)
#: Seconds after which something that must happen has not.
LIMIT = 60.0


class Server:
    """A listener whose connections only arrive."""

    def __init__(self, folder: Path, name: str = "disk0", timeout: float = LIMIT) -> None:
        self.path = str(folder / f"{name}.sock")
        self.name = name
        self.attached: SimpleQueue[tuple[socket.socket, Agreed]] = SimpleQueue()
        self.listener = UnixListener(self.path, 0o600)
        self.thread = Negotiator(timeout)
        self.in_transmission = 0
        self.listening = Listening(
            name, self.listener, lambda: [DISK], self._attach, lambda: self.in_transmission
        )
        self.thread.add(self.listening)

    def _attach(self, fd: int, agreed: Agreed, _: _native.NbdTls | None) -> None:
        self.attached.put((socket.socket(fileno=fd), agreed))

    def client(self) -> socket.socket:
        """Connected; nothing is read or sent yet."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(LIMIT)
        client.connect(self.path)
        return client

    def close(self) -> None:
        self.thread.discard(self.listening)
        self.listener.close()
        self.thread.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture
def log() -> Iterator[LogWatch]:
    with LogWatch("WARNING") as log:
        yield log


class Clock:
    """What the negotiator takes for time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands still: a handshake's time is over when the test says so, not on a busy machine."""
    clock = Clock()
    monkeypatch.setattr(negotiator, "monotonic", clock)
    return clock


def read(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (more := client.recv(length - len(data))):
        data += more
    return data


def at_end(client: socket.socket) -> bool:
    """Whether the server has closed the connection, at most :data:`LIMIT` seconds from now."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def check_served(server: Server) -> None:
    """A client that behaves gets served, and its requests are left for the transmission."""
    with server.client() as client:
        client.sendall(FLAGS + GO + b"request")
        connection, agreed = server.attached.get(timeout=LIMIT)
        with connection:
            assert agreed == Agreed(structured=False, base_allocation=False, export="disk0")
            connection.settimeout(LIMIT)
            assert read(connection, 7) == b"request"
            connection.sendall(b"reply")
            connection.shutdown(socket.SHUT_WR)
            data = read(client, 1 << 16)
    assert data.startswith(GREETING)
    assert data.endswith(b"reply")
    assert kinds(answers(data[len(GREETING) : -5]))[-1] is Reply.ACK


# --- handshakes ------------------------------------------------------------------------------


def test_connection_goes_over_to_transmission(server: Server) -> None:
    check_served(server)


def test_silent_clients_are_ended_and_keep_nobody_waiting(
    tmp_path: Path, log: LogWatch, clock: Clock
) -> None:
    server = Server(tmp_path, timeout=0.2)
    with server.client() as silent, server.client() as slow:
        slow.sendall(FLAGS + GO[:20])
        assert read(slow, len(GREETING)) == GREETING  # both are in their handshakes
        clock.now = 0.2
        assert at_end(silent)
        assert at_end(slow)
    log.wait_for("disk0: a client was refused: no end of its handshake within 0.2 s")
    server.close()


def test_client_that_does_not_read_is_not_read_from(
    tmp_path: Path, log: LogWatch, clock: Clock
) -> None:
    server = Server(tmp_path, timeout=0.2)
    with server.client() as client:
        assert read(client, len(GREETING)) == GREETING
        client.setblocking(False)
        asked = FLAGS
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 1 << 24:
                asked = asked or option(Option.LIST) * 100
                done = client.send(asked)
                sent, asked = sent + done, asked[done:]
        clock.now = 0.2
        client.settimeout(LIMIT)
        assert at_end(client)
    server.close()


def test_clients_beside_each_other(server: Server) -> None:
    clients = [server.client() for _ in range(20)]
    for piece in (FLAGS, GO[:9], GO[9:]):
        for client in clients:
            client.sendall(piece)
    for _ in clients:
        server.attached.get(timeout=LIMIT)[0].close()
    for client in clients:
        assert at_end(client)
        client.close()


def test_one_client_too_many_ends_the_one_that_took_longest(
    server: Server, log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negotiator, "MAX_NEGOTIATING", 3)
    clients = [server.client() for _ in range(4)]
    assert [read(client, len(GREETING)) for client in clients[1:]] == [GREETING] * 3
    assert at_end(clients[0])
    log.wait_for("disk0: a client was refused: more than 3 clients in their handshakes")
    for client in clients:
        client.close()
    check_served(server)


def test_newest_of_too_many_clients_is_ended(
    server: Server, log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negotiator, "MAX_CONNECTIONS", 4)
    server.in_transmission = 2
    clients = [server.client() for _ in range(3)]
    assert [read(client, len(GREETING)) for client in clients[:2]] == [GREETING] * 2
    assert read(clients[2], len(GREETING)) == b""
    log.wait_for("disk0: a client was refused: more than 4 clients")
    for client in clients[:2]:
        # The server has seen that it goes.
        client.shutdown(socket.SHUT_WR)
        assert at_end(client)
    for client in clients:
        client.close()
    server.in_transmission = 3
    check_served(server)


def test_clients_leave_fds_to_the_rest_of_the_process(
    server: Server, log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No fd below theirs may come free meanwhile, of what earlier tests have left to the collector.
    gc.collect()
    taken = [os.dup(0) for _ in range(2)]
    for fd in taken:
        os.close(fd)
    # The client has the first one, its connection the second.
    most = taken[1] + negotiator.SPARE_FDS
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (most, most))
    with server.client() as client:
        assert read(client, len(GREETING)) == b""
    reason = f"the process is short of fds: raise the limit of {most} (ulimit -n)"
    log.wait_for(f"disk0: a client was refused: {reason}")
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (most + 1, most + 1))
    check_served(server)


def test_client_that_breaks_the_rules_is_ended_and_named(server: Server, log: LogWatch) -> None:
    with server.client() as client:
        client.sendall(FLAGS + b"GET / HTTP/1.1\r\n\r\n")
        assert at_end(client)
    log.wait_for("disk0: a client was refused: an option begins with")
    check_served(server)


def test_clients_that_only_look_are_no_news(server: Server, log: LogWatch) -> None:
    server.client().close()
    with server.client() as client:
        client.sendall(FLAGS + option(Option.ABORT))
        assert at_end(client)
    check_served(server)
    assert log.lines == []


def test_failing_attach_hurts_nobody_else(tmp_path: Path, log: LogWatch) -> None:
    server = Server(tmp_path)
    good = server.listening.attach

    def attach(fd: int, agreed: Agreed, _: object) -> None:
        os.close(fd)
        object.__setattr__(server.listening, "attach", good)
        raise OSError("no room")

    object.__setattr__(server.listening, "attach", attach)
    with server.client() as client:
        client.sendall(FLAGS + GO)
        assert at_end(client)
    log.wait_for("a callback of the NBD thread failed")
    check_served(server)
    server.close()


def test_failing_export_ends_the_client(tmp_path: Path, log: LogWatch) -> None:
    server = Server(tmp_path)
    good = server.listening.exports

    def exports() -> list[Export]:
        object.__setattr__(server.listening, "exports", good)
        raise OSError(19, "No such device")

    object.__setattr__(server.listening, "exports", exports)
    with server.client() as client:
        client.sendall(FLAGS + option(Option.INFO, info("")))
        assert at_end(client)
    log.wait_for("disk0: a client was refused: No such device")
    check_served(server)
    server.close()


def test_without_fds_it_waits_and_goes_on(
    server: Server, log: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negotiator, "_PAUSE", 0.05)
    real = UnixListener.accept
    failed = threading.Event()

    def accept(self: UnixListener) -> socket.socket:
        if not failed.is_set():
            failed.set()
            raise OSError(24, "Too many open files")
        return real(self)

    monkeypatch.setattr(UnixListener, "accept", accept)
    check_served(server)
    assert log.lines == ["disk0: cannot accept, waiting 0.05 s: Too many open files"]


def test_discard_ends_handshakes_that_are_under_way(server: Server) -> None:
    with server.client() as client:
        assert read(client, len(GREETING)) == GREETING
        server.thread.discard(server.listening)
        assert at_end(client)


def test_one_thread_however_many_listen() -> None:
    assert Negotiator.shared() is Negotiator.shared()


# --- the socket ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777, 0o200])
def test_mode_is_there_from_the_start(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.sock"
    seen: list[int] = []
    real = os.chmod

    def chmod(where: str, wanted: int) -> None:
        seen.append(stat.S_IMODE(os.stat(where).st_mode))
        real(where, wanted)

    monkeypatch.setattr(os, "chmod", chmod)
    listener = UnixListener(path, mode)
    # Never more than was asked for, and in the end exactly that.
    assert [before & ~mode for before in seen] == [0]
    assert stat.S_IMODE(path.stat().st_mode) == mode
    listener.close()
    assert not path.exists()


def test_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    program = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    before = path.stat().st_ino
    listener = UnixListener(path, 0o600)
    assert stat.S_ISSOCK(path.stat().st_mode)
    listener.close()
    assert before
    assert not path.exists()


def test_socket_of_a_live_server_is_not(tmp_path: Path) -> None:
    first = UnixListener(tmp_path / "disk.sock", 0o600)
    with pytest.raises(ExportError, match="another server listens there: stop it, or name"):
        UnixListener(tmp_path / "disk.sock", 0o600)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(first.path)
    first.close()


def test_live_server_with_a_full_backlog_is_alive(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.sock")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        with pytest.raises(ExportError, match="another server listens there"):
            UnixListener(path, 0o600)


def test_servers_that_begin_at_once_on_a_dead_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.sock")
    for _ in range(50):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        made: SimpleQueue[UnixListener | None] = SimpleQueue()
        together = threading.Barrier(4)

        def begin(
            made: SimpleQueue[UnixListener | None] = made,
            together: threading.Barrier = together,
        ) -> None:
            together.wait()
            try:
                made.put(UnixListener(path, 0o600))
            except ExportError:
                made.put(None)

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [listener] = filter(None, [made.get() for _ in threads])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        listener.close()


def test_server_that_has_bound_and_not_listened_yet_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.sock"
    second: SimpleQueue[str] = SimpleQueue()
    other = threading.Thread(target=lambda: second.put(refused(path)))
    real = os.chmod

    def chmod(where: str, mode: int) -> None:
        other.start()
        other.join(0.2)  # long enough to take the file away, where that is possible
        real(where, mode)

    monkeypatch.setattr(os, "chmod", chmod)
    listener = UnixListener(path, 0o600)
    assert "another server listens there" in second.get(timeout=LIMIT)
    listener.close()


def test_directory_that_somebody_keeps_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "LOCK_TIMEOUT", 0.0)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        assert "keeps its directory locked" in refused(tmp_path / "disk.sock")
    finally:
        os.close(folder)


def test_next_server_at_the_same_path_keeps_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.sock"
    first = UnixListener(path, 0o600)
    after: list[UnixListener] = []
    real = socket.socket.close

    def close(self: socket.socket) -> None:
        ours = self is first._socket
        real(self)
        if ours:
            after.append(UnixListener(path, 0o600))

    monkeypatch.setattr(socket.socket, "close", close)
    first.close()
    assert path.exists()
    after[0].close()


def test_file_that_took_the_place_of_ours_stays(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    listener = UnixListener(path, 0o600)
    path.unlink()
    path.write_text("somebody's")
    listener.close()
    assert path.read_text() == "somebody's"


def refused(path: str | Path) -> str:
    with pytest.raises(ExportError) as caught:
        UnixListener(path, 0o600)
    return str(caught.value)


def test_places_where_it_cannot_listen(tmp_path: Path) -> None:
    assert refused("") == "the socket has no path: name one, as in ./disk.sock"
    long = tmp_path / ("x" * 108)
    assert refused(long) == (
        f"{long}: {len(str(long))} bytes are too long for a socket's path: at most 107; "
        "use a relative or a shorter one"
    )
    missing = tmp_path / "no" / "disk.sock"
    assert refused(missing) == f"{missing}: no such directory: make it, or name another"
    file = tmp_path / "file"
    file.touch()
    assert refused(file) == f"{file}: is a file and no socket: name another path"
    below = file / "disk.sock"
    assert refused(below) == f"{below}: a part of the path is not a directory: check it"
    assert file.exists()


def test_longest_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    UnixListener("x" * 107, 0o600).close()
    assert refused("é" * 54).startswith("é" * 54 + ": 108 bytes are too long")


def test_greeting_is_the_documents() -> None:
    assert struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3) == GREETING
