"""The data of options, parsed. ``Malformed``: it cannot be what the option takes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vduse.control.nbd import MAX_STRING

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


class Malformed(Exception):
    """Why; for the reply's message."""


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """Data of INFO and GO."""

    name: str
    #: Types of information asked for, unknown ones among them.
    infos: frozenset[int]


@dataclass(frozen=True, slots=True)
class ContextQuery:
    """Data of LIST_META_CONTEXT and SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


def parse_info_request(data: bytes) -> InfoRequest:
    """A name, and the types of information wanted."""
    reader = _Reader(data)
    name = reader.string("export name")
    infos = frozenset(reader.u16() for _ in range(reader.u16()))
    reader.end()
    return InfoRequest(name, infos)


def parse_context_query(data: bytes) -> ContextQuery:
    """A name, and queries for contexts."""
    reader = _Reader(data)
    name = reader.string("export name")
    # A count that the data has no room for ends at the first string that is missing.
    queries = tuple(reader.string("query") for _ in range(reader.u32()))
    reader.end()
    return ContextQuery(name, queries)


def parse_name(data: bytes) -> str:
    """Data of EXPORT_NAME: the name alone."""
    return _text(data, "export name")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def u16(self) -> int:
        return int(_U16.unpack(self._take(_U16.size))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self._take(_U32.size))[0])

    def string(self, what: str) -> str:
        return _text(self._take(self.u32()), what)

    def end(self) -> None:
        if left := len(self._data) - self._at:
            raise Malformed(f"{left} bytes too many")

    def _take(self, length: int) -> bytes:
        if length > len(self._data) - self._at:
            raise Malformed("the data ends too early")
        start, self._at = self._at, self._at + length
        return self._data[start : self._at]


def _text(data: bytes, what: str) -> str:
    if len(data) > MAX_STRING:
        raise Malformed(f"{what} of more than {MAX_STRING} bytes")
    if b"\0" in data:
        raise Malformed(f"{what} with a zero byte")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Malformed(f"{what} is not UTF-8") from None
