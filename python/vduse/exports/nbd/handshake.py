"""The server's side of the fixed newstyle handshake, without I/O.

    shake = Handshake(exports)
    while shake.outcome is None:
        send(shake.take_output())
        shake.receive(recv(shake.wanted))
    send(shake.take_output())

Where TLS is required nothing but STARTTLS and ABORT is served before it (proto.md, FORCEDTLS):
:attr:`Handshake.starts_tls` says that what follows goes through a session, both ways, and
:meth:`Handshake.go_on` that there is one.

Nothing is taken that belongs to the transmission phase: :attr:`Handshake.wanted` never reaches
past the step at hand. What a client may make the server keep and do is bounded by
:data:`MAX_OPTION_DATA`, :data:`MAX_OPTIONS` and :data:`MAX_BYTES`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vduse.control.nbd import (
    BASE_ALLOCATION,
    BASE_ALLOCATION_ID,
    MAGIC,
    OPTS_MAGIC,
    REP_MAGIC,
    RESERVED_ZEROES,
    HandshakeFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)
from vduse.exports.nbd.export import MAXIMUM_BLOCK, MINIMUM_BLOCK, PREFERRED_BLOCK, Export
from vduse.exports.nbd.options import (
    ContextQuery,
    Malformed,
    parse_context_query,
    parse_info_request,
    parse_name,
)

#: Bytes of the data of one option; what is longer is skipped and answered with ERR_TOO_BIG.
MAX_OPTION_DATA = 1 << 16
#: Options of one client.
MAX_OPTIONS = 1024
#: Bytes of one client, skipped ones included.
MAX_BYTES = 8 << 20

_GREETING = struct.Struct(">QQH")
_CLIENT_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_TYPE = struct.Struct(">H")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")
_EXPORT_NAME_REPLY = struct.Struct(">QH")
_LENGTH = struct.Struct(">I")
_CONTEXT_ID = struct.Struct(">I")

_FLAGS = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
#: Bytes that are skipped in one step.
_SKIP_STEP = 1 << 16


@dataclass(frozen=True, slots=True)
class Agreed:
    """The connection goes over to transmission."""

    #: Replies are structured.
    structured: bool
    #: BLOCK_STATUS answers for base:allocation.
    base_allocation: bool
    #: Its name as it is listed.
    export: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is to be closed."""

    #: Why; empty where the client went as clients may.
    reason: str


class Handshake:
    """One connection's, from the greeting to its :attr:`outcome`."""

    def __init__(
        self, exports: Callable[[], Sequence[Export]], *, requires_tls: bool = False
    ) -> None:
        """``exports``: what there is; asked when a client wants to know."""
        self._exports = exports
        #: Nothing is told before.
        self._awaits_tls = requires_tls
        #: STARTTLS was acknowledged: nothing is wanted until :meth:`go_on`.
        self.starts_tls = False
        self._output = bytearray()
        self._input = bytearray()
        self._wanted = _CLIENT_FLAGS.size
        self._step: Callable[[bytes], None] = self._client_flags
        self._option = 0
        self._skip = 0
        self._options_left = MAX_OPTIONS
        self._bytes_left = MAX_BYTES
        self._fixed = self._no_zeroes = self._structured = False
        #: Export name for which base:allocation was chosen.
        self._context_of: str | None = None
        #: None while the handshake goes on.
        self.outcome: Agreed | Ended | None = None
        self._output += _GREETING.pack(MAGIC, OPTS_MAGIC, _FLAGS)

    @property
    def wanted(self) -> int:
        """The most bytes that :meth:`receive` may get next; 0 after the end, and while a TLS
        session begins."""
        if self.outcome is not None or self.starts_tls:
            return 0
        return self._wanted - len(self._input)

    @property
    def output(self) -> bool:
        """Whether there is something to send."""
        return bool(self._output)

    def take_output(self) -> bytes:
        """What is to be sent, once."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def receive(self, data: bytes) -> None:
        """Bytes of the client, at most :attr:`wanted`; none at all: it has gone. ValueError for
        more."""
        if len(data) > self.wanted:
            raise ValueError(f"{len(data)} bytes where at most {self.wanted} are wanted")
        if self.outcome is not None:
            return
        if not data:
            between = not self._input and self._step in (self._client_flags, self._option_header)
            self._end("" if between else "it went away in the middle of an option")
            return
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._end(f"more than {MAX_BYTES} bytes before transmission")
            return
        self._input += data
        if not self.wanted:
            step = bytes(self._input)
            self._input.clear()
            self._step(step)

    def go_on(self) -> None:
        """The TLS session is there."""
        self.starts_tls = False

    # --- steps: each sets the next one ------------------------------------------------------

    def _client_flags(self, data: bytes) -> None:
        (flags,) = _CLIENT_FLAGS.unpack(data)
        if unknown := flags & ~int(_FLAGS):
            self._end(f"unknown client flags {unknown:#x}")
            return
        self._fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self._next_option()

    def _next_option(self) -> None:
        self._want(_OPTION.size, self._option_header)

    def _option_header(self, data: bytes) -> None:
        magic, self._option, length = _OPTION.unpack(data)
        self._options_left -= 1
        if magic != OPTS_MAGIC:
            self._end(f"an option begins with {magic:#x}")
        elif self._options_left < 0:
            self._end(f"more than {MAX_OPTIONS} options")
        elif not self._fixed and self._option != Option.EXPORT_NAME:
            # Plain newstyle knows no replies to options.
            self._end(f"option {self._option} without FIXED_NEWSTYLE")
        elif self._awaits_tls and self._option == Option.EXPORT_NAME:
            self._end("EXPORT_NAME before STARTTLS")
        elif length <= MAX_OPTION_DATA:
            self._want(length, self._option_data)
        elif self._option == Option.EXPORT_NAME:
            self._end(f"export name of {length} bytes")
        else:
            self._skip = length
            self._skip_more()

    def _skip_more(self, _skipped: bytes = b"") -> None:
        self._skip -= len(_skipped)
        if self._skip:
            self._want(min(self._skip, _SKIP_STEP), self._skip_more)
        else:
            self._refuse(Reply.ERR_TOO_BIG, f"more than {MAX_OPTION_DATA} bytes of data")
            self._next_option()

    def _option_data(self, data: bytes) -> None:
        serve = _SERVED.get(self._option)
        if self._awaits_tls and self._option not in (Option.STARTTLS, Option.ABORT):
            self._refuse(Reply.ERR_TLS_REQD, "TLS is required: STARTTLS comes first")
        elif serve is None:
            self._refuse(Reply.ERR_UNSUP, f"option {self._option} is not served")
        else:
            try:
                serve(self, data)
            except Malformed as error:
                self._refuse(Reply.ERR_INVALID, str(error))
        if self.outcome is None:
            self._next_option()

    def _want(self, length: int, step: Callable[[bytes], None]) -> None:
        self._wanted, self._step = length, step
        if not length:
            step(b"")

    # --- options ----------------------------------------------------------------------------

    def _export_name(self, data: bytes) -> None:
        # This option knows no error: the only refusal is to close the connection.
        try:
            name = parse_name(data)
        except Malformed as error:
            self._end(str(error))
            return
        export = self._find(name)
        if export is None:
            self._end(f"no export {name[:64]!r}")
            return
        self._output += _EXPORT_NAME_REPLY.pack(export.size, self._flags(export))
        if not self._no_zeroes:
            self._output += bytes(RESERVED_ZEROES)
        self._agree(name, export)

    def _abort(self, _data: bytes) -> None:
        self._reply(Reply.ACK)
        self._end("")

    def _starttls(self, data: bytes) -> None:
        if not self._awaits_tls:
            self._refuse(Reply.ERR_UNSUP, "no TLS here, or it has begun")
            return
        _expect_none(data)
        self._reply(Reply.ACK)
        self._awaits_tls = False
        self.starts_tls = True

    def _list(self, data: bytes) -> None:
        _expect_none(data)
        for export in self._exports():
            name = export.name.encode()
            self._reply(Reply.SERVER, _LENGTH.pack(len(name)) + name + export.description.encode())
        self._reply(Reply.ACK)

    def _go(self, data: bytes) -> None:
        found = self._tell(data)
        if found is not None:
            self._agree(*found)

    def _tell(self, data: bytes) -> tuple[str, Export] | None:
        """Answers INFO and GO; the name asked for and its export, None: there is no such."""
        request = parse_info_request(data)
        export = self._find(request.name)
        if export is None:
            self._refuse_name(request.name)
            return None
        # Block sizes are told even where they were not asked for: requests are held to them.
        self._reply(Reply.INFO, _INFO_EXPORT.pack(Info.EXPORT, export.size, self._flags(export)))
        if Info.NAME in request.infos:
            self._reply(Reply.INFO, _INFO_TYPE.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in request.infos and export.description:
            text = export.description.encode()
            self._reply(Reply.INFO, _INFO_TYPE.pack(Info.DESCRIPTION) + text)
        self._reply(
            Reply.INFO,
            _INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, MINIMUM_BLOCK, PREFERRED_BLOCK, MAXIMUM_BLOCK),
        )
        self._reply(Reply.ACK)
        return request.name, export

    def _structured_reply(self, data: bytes) -> None:
        _expect_none(data)
        self._structured = True
        self._reply(Reply.ACK)

    def _list_meta_context(self, data: bytes) -> None:
        query = self._contexts(data)
        if query is None:
            return
        # No query asks for all; a namespace with its colon for all of its contexts.
        if not query.queries or {BASE_ALLOCATION, "base:"} & set(query.queries):
            self._reply_context(0)  # ids have no meaning here
        self._reply(Reply.ACK)

    def _set_meta_context(self, data: bytes) -> None:
        # Whatever comes of it, an earlier choice is void.
        self._context_of = None
        query = self._contexts(data)
        if query is None:
            return
        if BASE_ALLOCATION in query.queries:
            self._context_of = query.name
            self._reply_context(BASE_ALLOCATION_ID)
        self._reply(Reply.ACK)

    def _contexts(self, data: bytes) -> ContextQuery | None:
        if not self._structured:
            raise Malformed("structured replies come first")
        query = parse_context_query(data)
        if self._find(query.name) is None:
            self._refuse_name(query.name)
            return None
        return query

    # --- replies ----------------------------------------------------------------------------

    def _flags(self, export: Export) -> int:
        # Reads are answered in one chunk, so what DF asks for is always so.
        extra = TransmissionFlag.SEND_DF if self._structured else 0
        return int(export.flags) | int(extra)

    def _reply(self, kind: Reply, data: bytes = b"") -> None:
        self._output += _REPLY.pack(REP_MAGIC, self._option, kind, len(data)) + data

    def _reply_context(self, number: int) -> None:
        self._reply(Reply.META_CONTEXT, _CONTEXT_ID.pack(number) + BASE_ALLOCATION.encode())

    def _refuse(self, kind: Reply, message: str) -> None:
        self._reply(kind, message.encode())

    def _refuse_name(self, name: str) -> None:
        self._refuse(Reply.ERR_UNKNOWN, f"no export {name[:64]!r}")

    def _find(self, name: str) -> Export | None:
        return next((export for export in self._exports() if export.serves(name)), None)

    def _agree(self, name: str, export: Export) -> None:
        has_context = self._structured and self._context_of == name
        self.outcome = Agreed(self._structured, has_context, export.name)

    def _end(self, reason: str) -> None:
        self.outcome = Ended(reason)


def _expect_none(data: bytes) -> None:
    if data:
        raise Malformed("this option takes no data")


#: All others are answered with ERR_UNSUP: EXTENDED_HEADERS among them.
_SERVED: dict[int, Callable[[Handshake, bytes], object]] = {
    Option.EXPORT_NAME: Handshake._export_name,
    Option.ABORT: Handshake._abort,
    Option.STARTTLS: Handshake._starttls,
    Option.LIST: Handshake._list,
    Option.INFO: Handshake._tell,
    Option.GO: Handshake._go,
    Option.STRUCTURED_REPLY: Handshake._structured_reply,
    Option.LIST_META_CONTEXT: Handshake._list_meta_context,
    Option.SET_META_CONTEXT: Handshake._set_meta_context,
}
