"""The framework's ends of the embedded channel: ordinary and hostile peers."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator

import pytest

from tests.held import nothing_left
from vduse.channel.normalized import normalized
from vduse.channel.packet import Answer, Call, Packet, receive_packet, send_packet
from vduse.channel.render import payload_text
from vduse.channel.server import CallServer, MessageServer
from vduse.channel.tap import Recorder
from vduse.control.abi import (
    DevRequest,
    DevResponse,
    Ioctl,
    IotlbEntry,
    IotlbEntryV2,
    SetStatus,
    VqEventfd,
    VqInfo,
    pack_name,
    pack_u64,
    unpack_u32,
)


class Handler:
    """Answers GET_API_VERSION, gives an fd for VQ_GET_INFO, counts fds for VQ_SETUP_KICKFD."""

    def __init__(self) -> None:
        self.fd_count = 0

    def ioctl(self, nr: int, payload: bytes, fds: list[int]) -> tuple[int, bytes, list[int]]:
        if nr == Ioctl.GET_API_VERSION:
            return 0, pack_u64(0), []
        if nr == Ioctl.IOTLB_GET_FD:
            return 0, b"entry", [os.open(os.devnull, os.O_RDONLY)]
        if nr == Ioctl.VQ_SETUP_KICKFD:
            self.fd_count = len(fds)
            return 0, b"", []
        if nr == Ioctl.VQ_INJECT_IRQ:
            unpack_u32(payload)
        if nr == Ioctl.VQ_SETUP:
            raise RuntimeError("a bug")
        raise OSError(errno.EINVAL, "unknown")


class Peer:
    """A device program's end, and the server."""

    def __init__(self, recorder: Recorder) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.handler = Handler()
        self.server = CallServer(ours, self.handler, device="disk0", tap=recorder)

    def call(self, nr: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> Answer:
        """One exchange; answer fds are closed."""
        send_packet(self.sock, Call(nr, 7, payload).pack(), fds)
        assert self.server.serve()
        packet = receive_packet(self.sock)
        assert packet is not None
        for fd in packet.fds:
            os.close(fd)
        return Answer.unpack(packet.data)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def peer(recorder: Recorder) -> Iterator[Peer]:
    peer = Peer(recorder)
    yield peer
    peer.sock.close()
    peer.server.close()


def test_answer_repeats_the_call_s_seq(peer: Peer) -> None:
    assert peer.call(Ioctl.GET_API_VERSION) == Answer(0, 7, pack_u64(0))


def test_oserror_is_minus_errno(peer: Peer) -> None:
    assert peer.call(0x1234) == Answer(-errno.EINVAL, 7, b"")


def test_no_fd_is_left_behind(peer: Peer) -> None:
    with open(os.devnull) as null, nothing_left():
        peer.call(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, 5).pack(), (null.fileno(),))
        assert peer.handler.fd_count == 1
        assert peer.call(Ioctl.IOTLB_GET_FD).payload == b"entry"


def test_caller_is_named(peer: Peer) -> None:
    assert peer.server.peer.pid == os.getpid()


@pytest.mark.parametrize(
    ("data", "fds", "why"),
    [
        (b"short", 0, "call of 5 bytes"),
        (bytes(8193), 0, "packet of more than 8192 bytes"),
        (Call(Ioctl.GET_API_VERSION, 1, b"").pack(), 3, "packet with more than 2 fds"),
        (Call(Ioctl.VQ_INJECT_IRQ, 1, b"\0").pack(), 1, "u32: 1 bytes, expected 4"),
        (Call(Ioctl.VQ_SETUP, 1, b"").pack(), 1, "a bug"),
    ],
)
def test_hostile_calls_end_their_connection_only(
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
    fds: int,
    why: str,
) -> None:
    hostile, other = Peer(recorder), Peer(recorder)
    with open(os.devnull) as null, nothing_left():
        socket.send_fds(hostile.sock, [data], [null.fileno()] * fds)
        assert not hostile.server.serve()
    assert why in caplog.text
    assert other.call(Ioctl.GET_API_VERSION).result == 0
    for peer in (hostile, other):
        peer.sock.close()
        peer.server.close()


def test_caller_that_reads_no_answers_is_cut_off(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    # A server that waited for room would hang here.
    alive = True
    while alive:
        send_packet(peer.sock, Call(Ioctl.GET_API_VERSION, 0, b"").pack())
        alive = peer.server.serve()
    assert "answers are not read" in caplog.text


def test_a_flood_of_calls_is_served_in_turns(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vduse.channel.server.BURST", 3)
    for _ in range(5):
        send_packet(peer.sock, Call(Ioctl.GET_API_VERSION, 7, b"").pack())
    for answers in (3, 2):
        assert peer.server.serve()
        assert all(receive_packet(peer.sock) is not None for _ in range(answers))
        with pytest.raises(BlockingIOError):
            receive_packet(peer.sock)


def test_end_of_connection(peer: Peer) -> None:
    peer.sock.close()
    assert not peer.server.serve()


# --- message socket ----------------------------------------------------------------------


class Node:
    """Messages to send, and what came back."""

    def __init__(self) -> None:
        self.unread: list[bytes] = []
        self.responses: list[bytes] = []
        self.released = 0
        self.error: int | None = None

    def read_messages(self) -> list[bytes]:
        unread, self.unread = self.unread, []
        return unread

    def write_response(self, data: bytes) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        self.responses.append(data)

    def release(self) -> None:
        self.released += 1


class Messages:
    """A device program's message socket, and the server."""

    def __init__(self, recorder: Recorder) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.node = Node()
        self.server = MessageServer(ours, self.node, device="disk0", tap=recorder)

    def receive(self) -> Packet:
        """The next message."""
        packet = receive_packet(self.sock)
        assert packet is not None
        return packet


@pytest.fixture
def messages(recorder: Recorder) -> Iterator[Messages]:
    messages = Messages(recorder)
    yield messages
    messages.sock.close()
    messages.server.close()


REQUEST = DevRequest(1, SetStatus(1)).pack()
RESPONSE = DevResponse(1).pack()


def test_message_and_response(messages: Messages) -> None:
    messages.node.unread = [REQUEST]
    assert messages.server.flush()
    assert messages.receive().data == REQUEST
    send_packet(messages.sock, RESPONSE)
    assert messages.server.serve()
    assert messages.node.responses == [RESPONSE]


def test_a_flood_of_responses_is_served_in_turns(
    messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vduse.channel.server.BURST", 3)
    for _ in range(5):
        send_packet(messages.sock, RESPONSE)
    for taken in (3, 5):
        assert messages.server.serve()
        assert len(messages.node.responses) == taken


def test_full_socket_keeps_the_rest_in_order(messages: Messages) -> None:
    requests = [DevRequest(number, SetStatus(0)).pack() for number in range(2000)]
    messages.node.unread = list(requests)
    assert messages.server.flush()
    assert messages.server.wants_write
    received = []
    while messages.server.wants_write or len(received) < len(requests):
        received.append(messages.receive().data)
        assert messages.server.flush()
    assert received == requests


def test_closed_message_socket_releases_the_node_once(messages: Messages) -> None:
    messages.sock.close()
    assert not messages.server.serve()
    messages.server.close()
    assert messages.node.released == 1


def test_answer_nobody_waits_for_is_harmless(messages: Messages) -> None:
    messages.node.error = errno.ENOENT
    send_packet(messages.sock, RESPONSE)
    assert messages.server.serve()


def test_malformed_response_ends_the_connection(
    messages: Messages, caplog: pytest.LogCaptureFixture
) -> None:
    messages.node.error = errno.EINVAL
    send_packet(messages.sock, b"short")
    assert not messages.server.serve()
    assert messages.node.released == 1
    assert "Invalid argument" in caplog.text


def test_response_with_fds_ends_the_connection(messages: Messages) -> None:
    with open(os.devnull) as null, nothing_left():
        send_packet(messages.sock, RESPONSE, [null.fileno()])
        assert not messages.server.serve()
    assert messages.node.responses == []


def test_unsent_messages_of_a_dead_peer_release_the_node(messages: Messages) -> None:
    messages.sock.close()
    messages.node.unread = [REQUEST]
    assert not messages.server.flush()
    assert messages.node.released == 1


_INFO_TEXT = "index=1 num=8 desc_addr=0x100000000 ready=True"

# --- tap ----------------------------------------------------------------------------------


def test_recorder_renders_a_line_a_record(
    peer: Peer, messages: Messages, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    peer.call(Ioctl.GET_API_VERSION)
    peer.call(Ioctl.VQ_INJECT_IRQ, bytes(4))
    with open(os.devnull) as null:
        peer.call(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, 9).pack(), (null.fileno(),))
    messages.node.unread = [DevRequest(4, SetStatus(1)).pack()]
    messages.server.flush()
    send_packet(messages.sock, DevResponse(4).pack())
    messages.server.serve()
    messages.server.close()
    assert recorder.lines() == [
        "disk0 open",
        "disk0 GET_API_VERSION() = 0 0",
        "disk0 VQ_INJECT_IRQ(0) = EINVAL",
        "disk0 VQ_SETUP_KICKFD(fd=9) +1fd = 0",
        "disk0 <- #4 SET_STATUS 0x1 ACKNOWLEDGE",
        "disk0 -> #4 OK",
        "disk0 close",
    ]


@pytest.mark.parametrize(
    ("nr", "data", "text"),
    [
        (Ioctl.DESTROY_DEV, pack_name("disk0"), "disk0"),
        (Ioctl.VQ_GET_INFO, VqInfo(1, 8, 1 << 32, ready=True).pack(), _INFO_TEXT),
        (Ioctl.VQ_GET_INFO, b"\1\2", "0102"),
        (Ioctl.IOTLB_GET_FD2, IotlbEntryV2(IotlbEntry(last=7), asid=1).pack(), "last=7 asid=1"),
        (0x1234, b"abc", "616263"),
    ],
)
def test_structs_are_rendered_without_zeroes(nr: int, data: bytes, text: str) -> None:
    assert payload_text(nr, data) == text


def test_normalized_runs_compare_equal() -> None:
    def run(request_id: int, fd: int) -> Recorder:
        recorder = Recorder()
        recorder.on_open("disk0")
        kick = VqEventfd(0, fd).pack()
        recorder.on_call("disk0", Ioctl.VQ_SETUP_KICKFD, kick, 1, 0, b"", 0)
        recorder.on_message("disk0", DevRequest(request_id, SetStatus(0)).pack())
        recorder.on_response("disk0", DevResponse(request_id).pack())
        recorder.on_close("disk0")
        return recorder

    first, second = run(5, 11), run(90, 12)
    assert first.records != second.records
    assert normalized(first.records) == normalized(second.records)
    assert normalized(run(5, -1).records) != normalized(first.records)
