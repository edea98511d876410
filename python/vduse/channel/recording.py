"""Recordings: what crossed a channel, as lines of JSON. docs/trace.md has the format.

The first line is the :class:`Header`, each further one an entry. A reader of this version reads
every recording of format :data:`FORMAT`: keys may be added to it, none is taken away or means
something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, BinaryIO, Literal, TypeAlias

import msgspec
from msgspec import Meta

from vduse.channel.render import call_name, result_text
from vduse.channel.tap import (
    Called,
    Closed,
    Messaged,
    Opened,
    Record,
    Responded,
    response_of,
)
from vduse.control import abi

#: The version of the format that is written; newer ones are refused.
FORMAT = 1
#: Bytes of a line that is still read: a packet of the channel has 8 KiB.
_LONGEST = 1 << 18


class RecordingError(Exception):
    """No recording, or one that cannot be read; the message says which and where."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Calls of a device's data path that were counted, and not seen one by one."""

    device: str
    #: Seconds, as :attr:`vduse.channel.tap.Opened.time`.
    time: float
    nr: int
    #: 0, or -errno.
    result: int
    count: int

    def line(self) -> str:
        call = f"{self.device} {call_name(self.nr)} = {result_text(self.result)}"
        return f"{call}, {self.count} times"


@dataclass(frozen=True, slots=True)
class Lost:
    """So many crossings are missing here: the file did not keep up."""

    count: int

    def line(self) -> str:
        return f"{self.count} calls and messages are missing here: the file did not keep up"


@dataclass(frozen=True, slots=True)
class End:
    """Nothing came after this."""

    time: float


Entry: TypeAlias = Record | Counted | Lost | End


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    #: :data:`FORMAT`.
    format: int = msgspec.field(name="vduse-recording", default=FORMAT)
    #: Of this package, that wrote it.
    version: str
    #: When time was 0: ISO 8601, UTC.
    started: str
    #: Whose VDUSE it was.
    framework: Literal["embedded", "kernel"]
    #: The embedded one's profile, or the kernel's release.
    kernel: str
    #: Which side of the channel was listened at. On the device's the data path is only counted.
    seen_by: Literal["framework", "device"]
    #: Extensions that the channel offers (docs/channel.md).
    extensions: tuple[str, ...] = ()
    #: The program that serves the devices, and its arguments.
    program: tuple[str, ...] = ()


class _Format(msgspec.Struct):
    """What is asked of a header first."""

    format: int = msgspec.field(name="vduse-recording")


_Seconds: TypeAlias = Annotated[float, Meta(ge=0, lt=1e10)]
_U32: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 32)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 62)]
_Result: TypeAlias = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]


class _Event(msgspec.Struct, frozen=True, tag_field="event", omit_defaults=True):
    """A line. Bytes are in hex."""

    time: _Seconds
    device: str = ""


class _Open(_Event, frozen=True, tag="open"):
    pass


class _Close(_Event, frozen=True, tag="close"):
    pass


class _Call(_Event, frozen=True, tag="call", kw_only=True):
    #: For people and scripts; ``nr`` is what counts.
    name: str = ""
    nr: _U32
    payload: str = ""
    fds: _Count = 0
    result: _Result
    answer: str = ""
    answer_fds: _Count = 0


class _Message(_Event, frozen=True, tag="message", kw_only=True):
    #: As ``name``.
    type: str = ""
    id: _U32 = 0
    data: str


class _Response(_Event, frozen=True, tag="response", kw_only=True):
    #: As ``name``; None: the data are no vduse_dev_response.
    id: _U32 | None = None
    result: _U32 | None = None
    data: str


class _Counted(_Event, frozen=True, tag="counted", kw_only=True):
    name: str = ""
    nr: _U32
    result: _Result
    count: _Count


class _Lost(msgspec.Struct, frozen=True, tag_field="event", tag="lost"):
    count: _Count


class _End(_Event, frozen=True, tag="end"):
    pass


_Line: TypeAlias = _Open | _Close | _Call | _Message | _Response | _Counted | _Lost | _End

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Line)
_types = {kind.value: kind.name for kind in abi.RequestType}


def encode_header(header: Header) -> bytes:
    """The first line, with its newline."""
    return _encoder.encode(msgspec.structs.replace(header, program=_texts(header.program))) + b"\n"


def encode(entry: Entry, start: float) -> bytes:
    """A line, with its newline. ``start``: the entry's clock when time was 0."""
    return _encoder.encode(_line(entry, start)) + b"\n"


def _line(entry: Entry, start: float) -> _Line:
    if isinstance(entry, Lost):
        return _Lost(entry.count)
    time = round(max(entry.time - start, 0.0), 6)
    if isinstance(entry, End):
        return _End(time)
    device = _text(entry.device)
    match entry:
        case Opened():
            return _Open(time, device)
        case Closed():
            return _Close(time, device)
        case Called():
            return _Call(
                time,
                device,
                name=call_name(entry.nr),
                nr=entry.nr,
                payload=entry.payload.hex(),
                fds=entry.nfds,
                result=entry.result,
                answer=entry.answer.hex(),
                answer_fds=entry.answer_nfds,
            )
        case Messaged():
            request = entry.request
            kind = _types.get(request.type, f"{request.type:#x}")
            data = request.pack().hex()
            return _Message(time, device, type=kind, id=request.request_id, data=data)
        case Responded():
            response = entry.response
            if isinstance(response, bytes):
                return _Response(time, device, data=response.hex())
            number, result = response.request_id, response.result
            return _Response(time, device, id=number, result=result, data=response.pack().hex())
        case Counted():
            name, nr = call_name(entry.nr), entry.nr
            return _Counted(time, device, name=name, nr=nr, result=entry.result, count=entry.count)


def decode(line: bytes) -> Entry:
    """The entry of a line. ValueError: it is none."""
    found: _Line = _decoder.decode(line)
    match found:
        case _Open():
            return Opened(found.device, found.time)
        case _Close():
            return Closed(found.device, found.time)
        case _Call():
            return Called(
                found.device,
                found.time,
                found.nr,
                bytes.fromhex(found.payload),
                found.fds,
                found.result,
                bytes.fromhex(found.answer),
                found.answer_fds,
            )
        case _Message():
            request = abi.DevRequest.unpack(bytes.fromhex(found.data))
            return Messaged(found.device, found.time, request)
        case _Response():
            return Responded(found.device, found.time, response_of(bytes.fromhex(found.data)))
        case _Counted():
            return Counted(found.device, found.time, found.nr, found.result, found.count)
        case _Lost():
            return Lost(found.count)
        case _End():
            return End(found.time)


class Reader:
    """A recording, read from a file line by line; iterate over it once."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """``file`` stays the caller's; ``name`` is for errors. RecordingError: it is no
        recording, or of a newer format."""
        self._file = file
        #: The file's.
        self.name = name
        #: Of the line that was read last, from 1.
        self.line = 1
        #: Why nothing is known of what came after the last entry; None: it has an end.
        self.cut: str | None = None
        self.header = self._header(file.readline(_LONGEST))

    def __iter__(self) -> Iterator[Record | Counted | Lost]:
        """The entries but the end. A last line without an end is left out. RecordingError: a
        line that is none; OSError."""
        while line := self._file.readline(_LONGEST):
            self.line += 1
            if not line.endswith(b"\n") and len(line) < _LONGEST:
                self.cut = f"cut in the middle of line {self.line}"
                return
            try:
                entry = decode(line)
            except (ValueError, RecursionError) as error:
                raise RecordingError(
                    f"{self.name}, line {self.line}: damaged: {str(error)[:200]}"
                ) from None
            if isinstance(entry, End):
                return
            yield entry
        self.cut = "without its end: it was cut, or its program runs still or was killed"

    def _header(self, line: bytes) -> Header:
        try:
            found = msgspec.json.decode(line, type=_Format)
        except (ValueError, RecursionError):
            raise RecordingError(f"{self.name}: no recording (of --trace-json)") from None
        if found.format > FORMAT:
            raise RecordingError(
                f"{self.name}: format {found.format}, and this vduse reads {FORMAT}: use a newer"
            )
        try:
            return msgspec.json.decode(line, type=Header)
        except ValueError as error:
            raise RecordingError(f"{self.name}, line 1: damaged: {error}") from None


def _text(name: str) -> str:
    """Names are bytes to the kernel; JSON takes characters only."""
    return name.encode("utf-8", "backslashreplace").decode()


def _texts(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_text, names))
