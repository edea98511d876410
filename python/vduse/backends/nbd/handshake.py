"""The client's side of the fixed newstyle handshake (NBD protocol document), without I/O.

    shake = Handshake("disk")
    while shake.outcome is None:
        send(shake.take_output())
        if shake.wants_tls:
            ...  # make a TLS session; all that follows goes through it
            shake.secured()
        else:
            shake.receive(recv(shake.wanted))

Nothing is taken that belongs to the transmission phase: :attr:`Handshake.wanted` never reaches past
the step at hand. The server is not trusted: what it may make the client keep and do is bounded by
:data:`MAX_REPLY` and :data:`MAX_BYTES`.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

from vduse.control.nbd import (
    BASE_ALLOCATION,
    MAGIC,
    MAX_STRING,
    OPTS_MAGIC,
    REP_MAGIC,
    RESERVED_ZEROES,
    HandshakeFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)

#: Bytes of one reply's data.
MAX_REPLY = 1 << 16
#: Bytes of one handshake.
MAX_BYTES = 1 << 20
#: Bytes: the longest read or write of a server that says nothing.
DEFAULT_PAYLOAD = 32 << 20

_GREETING = struct.Struct(">QQ")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")
_SIZE_FLAGS = struct.Struct(">QH")
_BLOCK_SIZE = struct.Struct(">III")

#: What a server means by an error.
_ERRORS = {
    Reply.ERR_POLICY: "refuses it",
    Reply.ERR_TLS_REQD: "requires TLS",
    Reply.ERR_UNKNOWN: "has no such export",
    Reply.ERR_SHUTDOWN: "is shutting down",
    Reply.ERR_BLOCK_SIZE_REQD: "wants its block sizes to be asked for",
}


class Refused(Exception):
    """Why there is no connection; one line."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """An export, and what was agreed on: the connection goes over to transmission."""

    #: Bytes.
    size: int
    #: As they came; unknown ones among them.
    flags: int
    #: Replies are structured.
    structured: bool
    #: Id of the meta context base:allocation; None: there is none.
    base_allocation: int | None
    #: Bytes: every offset and length is a multiple.
    minimum_block: int
    #: Bytes: the longest read or write.
    maximum_payload: int


@dataclass(frozen=True, slots=True)
class _Read:
    """So many bytes of the server are wanted."""

    length: int


@dataclass(frozen=True, slots=True)
class _Reply:
    kind: int
    data: bytes

    @property
    def message(self) -> str:
        """The server's words, as a line of printable characters."""
        text = self.data[:MAX_STRING].decode(errors="replace").strip()
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@dataclass(frozen=True, slots=True)
class _Secure:
    """What follows goes through a TLS session."""


_Steps: TypeAlias = Generator[_Read | _Secure, bytes, Agreed]


class Handshake:
    """One connection's, from the greeting to its :attr:`outcome`."""

    def __init__(self, export: str, *, tls: bool = False) -> None:
        """``export``: its name; empty: the server's default. ``tls``: not without TLS. ValueError:
        no name the protocol has."""
        self._tls = tls
        self._export = export.encode()
        if len(self._export) > MAX_STRING or b"\0" in self._export:
            raise ValueError(f"an export's name has at most {MAX_STRING} bytes, none of them zero")
        self._output = bytearray()
        self._input = bytearray()
        self._bytes_left = MAX_BYTES
        #: None while the handshake goes on.
        self.outcome: Agreed | None = None
        self._wanted = 0
        #: A TLS session is to be made, and told of by :meth:`secured`.
        self.wants_tls = False
        self._steps = self._run()
        self._go_on(next(self._steps))

    @property
    def wanted(self) -> int:
        """The most bytes that :meth:`receive` may get next; 0 after the end."""
        return self._wanted - len(self._input) if self.outcome is None else 0

    def secured(self) -> None:
        """The TLS session is there. ValueError: none was wanted."""
        if not self.wants_tls:
            raise ValueError("no TLS session is wanted")
        self.wants_tls = False
        self._step(b"")

    def take_output(self) -> bytes:
        """What is to be sent, once."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def receive(self, data: bytes) -> None:
        """Bytes of the server, at most :attr:`wanted`; none at all: it has gone. Refused: there
        will be no connection. ValueError for more."""
        if len(data) > self.wanted:
            raise ValueError(f"{len(data)} bytes where at most {self.wanted} are wanted")
        if self.outcome is not None or self.wants_tls:
            return
        if not data:
            raise Refused("the server closed the connection during the handshake")
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise Refused(f"the server sent more than {MAX_BYTES} bytes before transmission")
        self._input += data
        if len(self._input) == self._wanted:
            step = bytes(self._input)
            self._input.clear()
            self._step(step)

    def _step(self, data: bytes) -> None:
        try:
            self._go_on(self._steps.send(data))
        except StopIteration as end:
            self.outcome = end.value

    def _go_on(self, step: _Read | _Secure) -> None:
        match step:
            case _Read(length):
                self._wanted = length
            case _Secure():
                # Nothing that came before counts as sent in the session: none of it is kept.
                self._wanted, self.wants_tls = 0, True

    # --- the steps: each yields how many bytes it wants ---------------------------------------

    def _run(self) -> _Steps:
        magic, kind = _GREETING.unpack((yield _Read(_GREETING.size)))
        if magic != MAGIC:
            raise Refused("this is no NBD server")
        if kind != OPTS_MAGIC:
            raise Refused("the server speaks the oldstyle handshake, which ended with nbd 2.9")
        (server,) = _U16.unpack((yield _Read(_U16.size)))
        if not server & HandshakeFlag.FIXED_NEWSTYLE:
            raise Refused("the server has no fixed newstyle handshake")
        flags = HandshakeFlag.FIXED_NEWSTYLE | server & HandshakeFlag.NO_ZEROES
        self._output += _U32.pack(flags)
        if self._tls:
            yield from self._start_tls()
        structured = yield from self._ask_structured()
        context = (yield from self._ask_context()) if structured else None
        return (yield from self._go(structured, context, bool(flags & HandshakeFlag.NO_ZEROES)))

    def _start_tls(self) -> Generator[_Read | _Secure, bytes, None]:
        self._ask(Option.STARTTLS)
        reply = yield from self._reply(Option.STARTTLS)
        if reply.kind != Reply.ACK:
            raise Refused("the server has no TLS, which was asked for")
        if reply.data:
            raise Refused("the server broke the protocol: data where TLS begins")
        yield _Secure()

    def _ask_structured(self) -> Generator[_Read, bytes, bool]:
        self._ask(Option.STRUCTURED_REPLY)
        reply = yield from self._reply(Option.STRUCTURED_REPLY)
        # The server's first answer: it says here that it wants TLS.
        if reply.kind == Reply.ERR_TLS_REQD:
            raise _refusal(reply)
        return reply.kind == Reply.ACK

    def _ask_context(self) -> Generator[_Read, bytes, int | None]:
        query = BASE_ALLOCATION.encode()
        self._ask(
            Option.SET_META_CONTEXT,
            _U32.pack(len(self._export)) + self._export + _U32.pack(1),
            _U32.pack(len(query)) + query,
        )
        found = None
        while True:
            reply = yield from self._reply(Option.SET_META_CONTEXT)
            if reply.kind != Reply.META_CONTEXT:
                # An export that is not there is told of by GO.
                return found if reply.kind == Reply.ACK else None
            if len(reply.data) < _U32.size or reply.data[_U32.size :] != query:
                raise Refused("the server broke the protocol: a meta context nobody asked for")
            (found,) = _U32.unpack_from(reply.data)

    def _go(self, structured: bool, context: int | None, no_zeroes: bool) -> _Steps:
        self._ask(
            Option.GO,
            _U32.pack(len(self._export)) + self._export,
            _U16.pack(1) + _U16.pack(Info.BLOCK_SIZE),
        )
        size_flags: tuple[int, int] | None = None
        minimum, maximum = 1, DEFAULT_PAYLOAD
        while True:
            reply = yield from self._reply(Option.GO)
            if reply.kind == Reply.ERR_UNSUP:
                return (yield from self._export_name(structured, context, no_zeroes))
            if reply.kind == Reply.ACK:
                break
            if reply.kind != Reply.INFO:
                raise _refusal(reply)
            kind, data = reply.data[: _U16.size], reply.data[_U16.size :]
            if kind == _U16.pack(Info.EXPORT) and len(data) == _SIZE_FLAGS.size:
                size_flags = _SIZE_FLAGS.unpack(data)
            elif kind == _U16.pack(Info.BLOCK_SIZE) and len(data) == _BLOCK_SIZE.size:
                minimum, _preferred, maximum = _BLOCK_SIZE.unpack(data)
        if size_flags is None:
            raise Refused("the server broke the protocol: it did not say how large the export is")
        return _agreed(*size_flags, structured, context, minimum, maximum)

    def _export_name(self, structured: bool, context: int | None, no_zeroes: bool) -> _Steps:
        """Of servers without GO: a name that is not there ends the connection."""
        self._ask(Option.EXPORT_NAME, self._export)
        size, flags = _SIZE_FLAGS.unpack((yield _Read(_SIZE_FLAGS.size)))
        if not no_zeroes:
            yield _Read(RESERVED_ZEROES)
        return _agreed(size, flags, structured, context, 1, DEFAULT_PAYLOAD)

    def _ask(self, option: Option, *data: bytes) -> None:
        whole = b"".join(data)
        self._output += _OPTION.pack(OPTS_MAGIC, option, len(whole)) + whole

    def _reply(self, option: Option) -> Generator[_Read, bytes, _Reply]:
        magic, answered, kind, length = _REPLY.unpack((yield _Read(_REPLY.size)))
        if magic != REP_MAGIC or answered != option:
            raise Refused("the server broke the protocol: a reply to no option")
        if length > MAX_REPLY:
            raise Refused(f"the server broke the protocol: a reply of {length} bytes")
        return _Reply(kind, (yield _Read(length)) if length else b"")


def _agreed(
    size: int,
    flags: int,
    structured: bool,
    context: int | None,
    minimum: int,
    maximum: int,
) -> Agreed:
    if not flags & TransmissionFlag.HAS_FLAGS:
        flags = 0
    return Agreed(size, flags, structured, context, minimum, maximum)


def _refusal(reply: _Reply) -> Refused:
    what = _ERRORS.get(Reply(reply.kind)) if reply.kind in _KNOWN else None
    words = f": {reply.message}" if reply.message else ""
    return Refused(f"the server {what or f'answers {reply.kind:#x}'}{words}")


_KNOWN = frozenset(Reply)
