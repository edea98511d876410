"""A client's side of the NBD handshake, written for these tests: what it sends, and what it makes
of the answers."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vduse.control.nbd import (
    MAGIC,
    OPTS_MAGIC,
    REP_MAGIC,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)

GREETING = struct.pack(">QQH", MAGIC, OPTS_MAGIC, 3)
#: Client flags FIXED_NEWSTYLE and NO_ZEROES.
FLAGS = struct.pack(">I", 3)


@dataclass(frozen=True)
class Answer:
    """One reply to an option."""

    option: int
    kind: int
    data: bytes


def option(number: int, data: bytes = b"") -> bytes:
    """An option, as sent."""
    return struct.pack(">QII", OPTS_MAGIC, number, len(data)) + data


def string(text: str | bytes) -> bytes:
    """A string and its length before it."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(data)) + data


def info(name: str | bytes, *infos: int) -> bytes:
    """Data of INFO and GO."""
    return string(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def contexts(name: str, *queries: str | bytes) -> bytes:
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def answers(output: bytes) -> list[Answer]:
    """All replies in what the server sent."""
    found = []
    while output:
        magic, number, kind, length = struct.unpack_from(">QIII", output)
        assert magic == REP_MAGIC
        assert len(output) >= 20 + length
        found.append(Answer(number, kind, output[20 : 20 + length]))
        output = output[20 + length :]
    return found


def kinds(found: list[Answer]) -> list[Reply]:
    """Types of the replies."""
    return [Reply(answer.kind) for answer in found]


def export_facts(found: list[Answer]) -> tuple[int, TransmissionFlag]:
    """Size and flags of the reply INFO_EXPORT among them."""
    for answer in found:
        if answer.kind == Reply.INFO and answer.data[:2] == struct.pack(">H", Info.EXPORT):
            _, size, flags = struct.unpack(">HQH", answer.data)
            return size, TransmissionFlag(flags)
    raise AssertionError("no NBD_INFO_EXPORT")


GO = option(Option.GO, info("", Info.BLOCK_SIZE))
