"""The client's side of the NBD handshake: against our server's, against servers of old, and
against those that lie."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vduse.backends.nbd.handshake import (
    DEFAULT_PAYLOAD,
    MAX_REPLY,
    Agreed,
    Handshake,
    Refused,
)
from vduse.control.nbd import (
    MAGIC,
    OPTS_MAGIC,
    REP_MAGIC,
    HandshakeFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)
from vduse.exports.nbd.export import MAXIMUM_BLOCK, MINIMUM_BLOCK, Export
from vduse.exports.nbd.handshake import Handshake as ServerHandshake

SIZE = 1 << 30
FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
NEWSTYLE = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
GREETING = struct.pack(">QQH", MAGIC, OPTS_MAGIC, NEWSTYLE)


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", REP_MAGIC, option, kind, len(data)) + data


def feed(shake: Handshake, data: bytes) -> bytes:
    """All of ``data``, in steps as they are wanted; what the client takes not."""
    while shake.outcome is None and data:
        step = data[: shake.wanted]
        data = data[len(step) :]
        shake.receive(step)
    return data


def refusal(*parts: bytes) -> str:
    """Why a client goes away from a server that sends this."""
    with pytest.raises(Refused) as refused:
        feed(Handshake("disk"), b"".join(parts))
    return str(refused.value)


NO_STRUCTURED = reply(Option.STRUCTURED_REPLY, Reply.ERR_UNSUP)
EXPORT = reply(Option.GO, Reply.INFO, struct.pack(">HQH", Info.EXPORT, SIZE, FLAGS))


def test_both_sides_of_the_handshake_agree() -> None:
    server = ServerHandshake(lambda: [Export("disk", SIZE, FLAGS)])
    client = Handshake("disk")
    while client.outcome is None:
        feed(client, server.take_output())
        data = client.take_output()
        while data:
            step = data[: server.wanted]
            data = data[len(step) :]
            server.receive(step)
    assert client.outcome == Agreed(
        SIZE, FLAGS | TransmissionFlag.SEND_DF, True, 1, MINIMUM_BLOCK, MAXIMUM_BLOCK
    )


def test_a_server_of_few_options_is_spoken_to_in_its_way() -> None:
    """Without structured replies and GO: EXPORT_NAME, and zeroes where NO_ZEROES is not there."""
    greeting = struct.pack(">QQH", MAGIC, OPTS_MAGIC, HandshakeFlag.FIXED_NEWSTYLE)
    shake = Handshake("disk")
    rest = feed(
        shake,
        greeting
        + NO_STRUCTURED
        + reply(Option.GO, Reply.ERR_UNSUP)
        + struct.pack(">QH", SIZE, FLAGS)
        + bytes(124)
        + b"transmission",
    )
    assert rest == b"transmission"
    assert shake.outcome == Agreed(SIZE, FLAGS, False, None, 1, DEFAULT_PAYLOAD)
    assert shake.take_output().endswith(
        struct.pack(">QII", OPTS_MAGIC, Option.EXPORT_NAME, 4) + b"disk"
    )


def test_nothing_of_the_transmission_phase_is_taken() -> None:
    shake = Handshake("")
    rest = feed(shake, GREETING + NO_STRUCTURED + EXPORT + reply(Option.GO, Reply.ACK) + b"more")
    assert rest == b"more"
    assert shake.outcome == Agreed(SIZE, FLAGS, False, None, 1, DEFAULT_PAYLOAD)
    assert shake.wanted == 0


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b"SSH-2.0-OpenSSH_9.2 Debian"], "this is no NBD server"),
        ([struct.pack(">QQH", MAGIC, 0x00420281861253, 0)], "oldstyle"),
        ([struct.pack(">QQH", MAGIC, OPTS_MAGIC, 0)], "no fixed newstyle"),
        (
            [GREETING, reply(Option.STRUCTURED_REPLY, Reply.ERR_TLS_REQD, b"use TLS")],
            "requires TLS: use TLS",
        ),
        ([GREETING, reply(Option.GO, Reply.ACK)], "a reply to no option"),
        (
            [GREETING, struct.pack(">QIII", 7, Option.STRUCTURED_REPLY, 1, 0)],
            "a reply to no option",
        ),
        (
            [GREETING, struct.pack(">QIII", REP_MAGIC, Option.STRUCTURED_REPLY, 1, MAX_REPLY + 1)],
            "a reply of 65537 bytes",
        ),
        ([GREETING, NO_STRUCTURED, reply(Option.GO, Reply.ACK)], "did not say how large"),
        (
            [GREETING, NO_STRUCTURED, reply(Option.GO, Reply.ERR_UNKNOWN, b"no\nsuch \x1b[1mdisk")],
            "has no such export: no\ufffdsuch \ufffd[1mdisk",
        ),
        ([GREETING, NO_STRUCTURED, reply(Option.GO, Reply.ERR_SHUTDOWN)], "is shutting down"),
        ([GREETING, NO_STRUCTURED, reply(Option.GO, 0x80001234)], "answers 0x80001234"),
        (
            [GREETING, NO_STRUCTURED, *[reply(Option.GO, Reply.INFO, bytes(MAX_REPLY))] * 20],
            "more than 1048576 bytes",
        ),
        (
            [
                GREETING,
                reply(Option.STRUCTURED_REPLY, Reply.ACK),
                reply(Option.SET_META_CONTEXT, Reply.META_CONTEXT, b"abc"),
            ],
            "a meta context nobody asked for",
        ),
    ],
)
def test_a_server_that_refuses_or_lies_is_left_with_one_line(parts: list[bytes], why: str) -> None:
    assert why in refusal(*parts)
    assert "\n" not in refusal(*parts)


def test_a_server_that_goes_away_is_told_of() -> None:
    shake = Handshake("")
    feed(shake, GREETING[:5])
    with pytest.raises(Refused, match="closed the connection during the handshake"):
        shake.receive(b"")


@given(st.lists(st.sampled_from([GREETING, NO_STRUCTURED, EXPORT]) | st.binary(max_size=64)))
def test_whatever_comes_it_ends_or_waits(parts: list[bytes]) -> None:
    shake = Handshake("disk")
    try:
        feed(shake, b"".join(parts))
    except Refused:
        return
    assert shake.outcome is not None or 0 < shake.wanted <= MAX_REPLY


@pytest.mark.parametrize("name", ["a\0b", "x" * 4097])
def test_a_name_that_the_protocol_has_not_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="4096 bytes"):
        Handshake(name)
