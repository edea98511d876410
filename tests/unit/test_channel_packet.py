"""Packets of the embedded channel against hostile peers (docs/channel.md)."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.held import nothing_left
from vduse.channel.packet import (
    MAX_FDS,
    MAX_PACKET,
    Answer,
    Call,
    PacketError,
    close_fds,
    peer_credentials,
    receive_packet,
    send_packet,
)

u32 = st.integers(0, 2**32 - 1)
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@given(st.builds(Call, u32, u32, st.binary(max_size=64)))
def test_call_round_trip(call: Call) -> None:
    assert Call.unpack(call.pack()) == call


@given(st.builds(Answer, st.integers(-(2**31), 2**31 - 1), u32, st.binary(max_size=64)))
def test_answer_round_trip(answer: Answer) -> None:
    assert Answer.unpack(answer.pack()) == answer


@pytest.mark.parametrize("length", range(8))
def test_truncated_header_is_refused(length: int) -> None:
    with pytest.raises(PacketError, match=f"call of {length} bytes"):
        Call.unpack(bytes(length))
    with pytest.raises(PacketError, match=f"answer of {length} bytes"):
        Answer.unpack(bytes(length))


def test_fds_arrive_close_on_exec(pair: Pair) -> None:
    ours, theirs = pair
    with open(os.devnull) as null:
        send_packet(theirs, b"x", [null.fileno()] * MAX_FDS)
    packet = receive_packet(ours)
    assert packet is not None
    assert (packet.data, len(packet.fds)) == (b"x", MAX_FDS)
    assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in packet.fds)
    close_fds(packet.fds)


def test_longest_packet_is_taken(pair: Pair) -> None:
    ours, theirs = pair
    send_packet(theirs, bytes(MAX_PACKET))
    packet = receive_packet(ours)
    assert packet is not None
    assert len(packet.data) == MAX_PACKET


def test_nothing_there_does_not_wait(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        receive_packet(pair[0])


def test_end_of_connection_is_none(pair: Pair) -> None:
    pair[1].close()
    assert receive_packet(pair[0]) is None


@pytest.mark.parametrize(
    ("size", "fds", "why"),
    [
        (MAX_PACKET + 1, 0, "packet of more than 8192 bytes"),
        (MAX_PACKET + 1, 2, "packet of more than 8192 bytes"),
        (8, MAX_FDS + 1, "packet with more than 2 fds"),
        (8, 200, "packet with more than 2 fds"),
        (0, 1, "packet of fds only"),
    ],
)
def test_hostile_packets_leave_no_fds(pair: Pair, size: int, fds: int, why: str) -> None:
    ours, theirs = pair
    with open(os.devnull) as null, nothing_left():
        socket.send_fds(theirs, [bytes(size)], [null.fileno()] * fds)
        with pytest.raises(PacketError, match=why):
            receive_packet(ours)


def test_sender_is_named_with_passcred(pair: Pair) -> None:
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    child = os.fork()
    if child == 0:
        send_packet(theirs, b"x")
        os._exit(0)
    os.waitpid(child, 0)
    packet = receive_packet(ours)
    assert packet is not None
    assert packet.sender is not None
    assert packet.sender.pid == child
    assert peer_credentials(ours).pid == os.getpid(), "SO_PEERCRED names who made the pair"
