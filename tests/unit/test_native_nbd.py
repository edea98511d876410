"""NBD's transmission phase over a whole stack: a raw socket client, requests as the protocol
document has them."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from vduse import _native
from vduse.device.workers import shared_pool
from vduse.testing.harness import BlkStack, blk_stack

MIB = 1 << 20
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = (1 << bit for bit in range(5))
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
HOLE, ZERO = 1, 2
#: Types of structured reply chunks.
NONE, OFFSET_DATA, STATUS, ERROR = 0, 1, 5, 0x8001


def request(
    command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 1
) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


#: Sockets of the test's clients.
_SOCKETS: list[socket.socket] = []


@pytest.fixture(autouse=True)
def close_sockets() -> Iterator[None]:
    yield
    while _SOCKETS:
        _SOCKETS.pop().close()


class Client:
    """One connection in the transmission phase."""

    def __init__(self, export: _native.NbdExport, *, structured: bool = True) -> None:
        ours, theirs = socket.socketpair()
        _SOCKETS.append(ours)
        self.socket = ours
        self.socket.settimeout(60)
        self.structured = structured
        export.attach(theirs.detach(), structured=structured, base_allocation=structured)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError(f"{len(data)} of {size} bytes")
            data += part
        return bytes(data)

    def reply(self, data: int = 0) -> tuple[int, int, bytes]:
        """Error, cookie and data (``data`` bytes of a simple reply that is no error)."""
        if not self.structured:
            magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
            assert magic == 0x67446698
            return error, cookie, b"" if error else self.receive(data)
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.receive(20))
        assert (magic, flags) == (0x668E33EF, 1)
        payload = self.receive(length)
        if kind == ERROR:
            error, message = struct.unpack_from(">IH", payload)
            assert len(payload) == 6 + message
            return error, cookie, b""
        assert kind in (NONE, OFFSET_DATA, STATUS)
        return 0, cookie, payload

    def ask(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> int:
        """The error of one request, 0 for none."""
        self.send(request(command, offset, length, flags=flags) + data)
        return self.reply(length if command == READ else 0)[0]

    def read(self, offset: int, length: int) -> bytes:
        self.send(request(READ, offset, length))
        error, _, payload = self.reply(length)
        assert error == 0
        if self.structured:
            assert struct.unpack_from(">Q", payload) == (offset,)
            return payload[8:]
        return payload

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        assert self.ask(WRITE, offset, len(data), flags=flags, data=data) == 0

    def status(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """Length and flags of the extents of base:allocation."""
        self.send(request(BLOCK_STATUS, offset, length, flags=flags))
        error, _, payload = self.reply()
        assert error == 0
        context, *numbers = struct.unpack(f">{len(payload) // 4}I", payload)
        assert context == 1
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def has_ended(self) -> bool:
        """Waits for the end; false if something came instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@contextmanager
def export_of(
    stack: BlkStack, data_path: _native.BlkDataPath | None = None
) -> Iterator[_native.NbdExport]:
    export = _native.NbdExport(stack.native, shared_pool(), data_path=data_path)
    try:
        yield export
    finally:
        export.close(5.0)


@pytest.fixture(scope="module")
def stack() -> Iterator[BlkStack]:
    with blk_stack(size=64 * MIB, queues=2) as stack:
        yield stack


@pytest.fixture
def export(stack: BlkStack) -> Iterator[_native.NbdExport]:
    with export_of(stack) as export:
        yield export


@pytest.fixture
def client(export: _native.NbdExport) -> Client:
    return Client(export)


def next_event(export: _native.NbdExport) -> str:
    ready, _, _ = select.select([export.event_fd], [], [], 30)
    assert ready
    return export.events()[0]


# --- commands ------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("length", [512, 4096, 65536, MIB, 32 * MIB])
def test_what_was_written_is_read(
    stack: BlkStack, export: _native.NbdExport, structured: bool, length: int
) -> None:
    client = Client(export, structured=structured)
    data = os.urandom(length)
    client.write(512, data)
    assert client.read(512, length) == data
    assert stack.disk.pread(length, 512) == data


def test_requests_in_one_message_are_all_answered(client: Client) -> None:
    data = os.urandom(100 * 4096)
    writes = b"".join(
        request(WRITE, at * 4096, 4096, cookie=at) + data[at * 4096 : (at + 1) * 4096]
        for at in range(100)
    )
    client.send(writes)
    assert {client.reply()[:2] for _ in range(100)} == {(0, at) for at in range(100)}
    client.send(b"".join(request(READ, at * 4096, 4096, cookie=at) for at in range(100)))
    read = {cookie: payload for _, cookie, payload in (client.reply() for _ in range(100))}
    assert b"".join(read[at][8:] for at in range(100)) == data


def test_requests_may_arrive_byte_by_byte(client: Client) -> None:
    for byte in request(WRITE, 0, 512) + b"x" * 512 + request(READ, 0, 512, cookie=2):
        client.send(bytes([byte]))
    assert client.reply() == (0, 1, b"")
    assert client.reply() == (0, 2, bytes(8) + b"x" * 512)


def test_fua_flushes_before_the_reply(stack: BlkStack, client: Client) -> None:
    requests = stack.native.stats()["requests"]
    client.write(0, bytes(512))
    assert stack.native.stats()["requests"] == requests + 1
    client.write(0, bytes(512), FUA)
    assert stack.native.stats()["requests"] == requests + 3
    assert client.ask(WRITE_ZEROES, 0, 512, flags=FUA) == 0
    assert stack.native.stats()["requests"] == requests + 5


def test_flush_and_cache_succeed(client: Client) -> None:
    assert client.ask(FLUSH) == 0
    assert client.ask(CACHE, 0, 4096) == 0


def test_disc_ends_the_connection_after_all_replies(
    export: _native.NbdExport, client: Client
) -> None:
    client.send(b"".join(request(READ, 0, 4096) for _ in range(50)) + request(DISC))
    for _ in range(50):
        assert client.reply()[0] == 0
    assert client.has_ended()
    assert export.events() == []


# --- base:allocation -----------------------------------------------------------------------


def test_block_status_is_the_backends_answer(stack: BlkStack) -> None:
    with export_of(stack, stack.blk.data_path) as export:
        client = Client(export)
        client.write(0, b"x" * MIB)
        assert client.status(0, MIB) == [(MIB, 0)]
        assert client.ask(TRIM, 65536, 65536) == 0
        assert client.ask(WRITE_ZEROES, 3 * 65536, 65536) == 0
        hole = (65536, HOLE | ZERO)
        assert client.status(0, 5 * 65536) == [(65536, 0), hole, (65536, 0), hole, (65536, 0)]
        assert client.status(65536, 4 * 65536, REQ_ONE) == [hole]
        # By another than the export.
        stack.disk.pwrite(b"y" * 4096, 3 * 65536 + 4096)
        parts = [(4096, HOLE | ZERO), (4096, 0), (65536 - 8192, HOLE | ZERO)]
        assert client.status(3 * 65536, 65536) == parts


def test_without_its_data_path_all_is_data(client: Client) -> None:
    assert client.ask(TRIM, 0, MIB) == 0
    assert client.status(0, 2 * MIB) == [(2 * MIB, 0)]


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "error"),
    [
        (READ, 64 * MIB, 512, 0, EINVAL),
        (WRITE, 64 * MIB - 512, 1024, 0, ENOSPC),
        (WRITE_ZEROES, 64 * MIB, 512, 0, ENOSPC),
        (TRIM, 1 << 63, 512, 0, EINVAL),
        (READ, 1, 512, 0, EINVAL),
        (WRITE, 0, 513, 0, EINVAL),
        (READ, 0, 0, 0, EINVAL),
        (WRITE, 0, 0, 0, EINVAL),
        (READ, 0, 33 * MIB, 0, EINVAL),
        (WRITE, 0, 33 * MIB, 0, EINVAL),
        (FLUSH, 0, 512, 0, EINVAL),
        (WRITE_ZEROES, 0, 512, FAST_ZERO | NO_HOLE, ENOTSUP),
        (WRITE, 0, 512, DF, EINVAL),
        (8, 0, 512, 0, EINVAL),
        (0xFFFF, 0, 512, 0, EINVAL),
    ],
)
def test_a_refused_request_leaves_the_connection_as_it_was(
    export: _native.NbdExport,
    structured: bool,
    command: int,
    offset: int,
    length: int,
    flags: int,
    error: int,
) -> None:
    client = Client(export, structured=structured)
    data = bytes(length) if command == WRITE else b""
    assert client.ask(command, offset, length, flags=flags, data=data) == error
    assert client.ask(FLUSH) == 0


def test_a_fragment_that_cannot_be_is_eoverflow(client: Client) -> None:
    assert client.ask(READ, 0, 33 * MIB, flags=DF) == EOVERFLOW


def test_a_read_only_disk_refuses_changes_with_eperm() -> None:
    with blk_stack(read_only=True) as stack, export_of(stack) as export:
        client = Client(export)
        assert client.ask(WRITE, 0, 512, data=bytes(512)) == EPERM
        assert client.ask(TRIM, 0, 512) == EPERM
        assert client.ask(WRITE_ZEROES, 0, 512) == EPERM
        assert client.ask(READ, 0, 512) == 0


def test_block_status_needs_its_meta_context(export: _native.NbdExport) -> None:
    assert Client(export, structured=False).ask(BLOCK_STATUS, 0, 512) == EINVAL
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ValueError, match="structured"):
        export.attach(os.dup(theirs.fileno()), structured=False, base_allocation=True)


# --- hostile clients -----------------------------------------------------------------------


def test_bad_magic_ends_that_connection_alone(export: _native.NbdExport, client: Client) -> None:
    other = Client(export)
    client.send(b"GET / HTTP/1.1\r\n\r\n" + bytes(28))
    assert client.has_ended()
    assert next_event(export) == "connection 0: a request began with 0x47455420"
    assert other.ask(READ, 0, 512) == 0


@pytest.mark.parametrize(
    "sent", [request(READ, 0, 512)[:27], request(WRITE, 0, MIB), request(WRITE, 0, 512) + b"x"]
)
def test_a_client_that_vanishes_in_mid_request_is_told(
    export: _native.NbdExport, client: Client, sent: bytes
) -> None:
    client.send(sent)
    client.socket.close()
    expected = "connection 0: the client went away in the middle of a request"
    assert next_event(export) == expected
    assert export.connections == 0


def test_a_client_that_does_not_read_holds_up_nobody_else(export: _native.NbdExport) -> None:
    greedy, other = Client(export), Client(export)
    greedy.socket.setblocking(False)
    flood = request(READ, 0, MIB) * 1000
    try:
        while flood:
            flood = flood[greedy.socket.send(flood) :]
    except BlockingIOError:
        pass
    for _ in range(10):
        assert other.ask(READ, 0, 4096) == 0
    third = Client(export)  # on the queue of the first
    assert third.ask(READ, 0, 4096) == 0
    # And when it reads after all, it gets what it asked for.
    greedy.socket.settimeout(60)
    for _ in range(300):
        assert greedy.reply()[0] == 0


# --- ends ----------------------------------------------------------------------------------


def test_a_disk_that_ends_ends_its_connections() -> None:
    with blk_stack() as stack, export_of(stack) as export:
        client = Client(export)
        assert client.ask(READ, 0, 512) == 0
        stack.framework.bus.unbind(stack.spec.name)
        assert client.has_ended()
        assert "the disk has ended" in next_event(export)


def test_close_answers_what_was_taken_and_ends_the_rest(stack: BlkStack) -> None:
    export = _native.NbdExport(stack.native, shared_pool())
    client = Client(export)
    assert client.ask(READ, 0, 512) == 0
    assert export.close(60.0)
    assert client.has_ended()
    assert export.connections == 0
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(ValueError, match="closed"):
        export.attach(theirs.detach(), structured=True, base_allocation=True)


def test_close_does_not_wait_for_a_client_that_does_not_read(stack: BlkStack) -> None:
    export = _native.NbdExport(stack.native, shared_pool())
    client = Client(export)
    client.send(request(READ, 0, MIB) * 16)
    client.receive(1)
    assert not export.close(0.0)
    assert export.connections == 0


def test_only_a_stream_socket_is_attached(export: _native.NbdExport) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    read, write = os.pipe()
    refused: list[Callable[[], int]] = [theirs.detach, lambda: read]
    for fd in refused:
        with pytest.raises(OSError):
            export.attach(fd(), structured=True, base_allocation=True)
    os.close(write)
    ours.close()


def test_statistics_count_requests_and_bytes(export: _native.NbdExport, client: Client) -> None:
    client.write(0, bytes(4096))
    client.read(0, 512)
    assert client.ask(READ, 1, 512) == EINVAL
    client.send(request(DISC))
    assert client.has_ended()
    assert export.stats() == {
        "connections": 1,
        "requests": 4,
        "bytes_read": 512,
        "bytes_written": 4096,
        "errors": 1,
    }
