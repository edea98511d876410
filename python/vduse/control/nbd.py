"""Numbers of the NBD handshake, under their names in the NBD protocol document, without NBD_.
All integers on the wire are big-endian."""

from __future__ import annotations

from enum import IntEnum, IntFlag

#: First eight bytes from the server.
MAGIC = 0x4E42444D41474943
#: Next eight, and the first eight of every option: "IHAVEOPT".
OPTS_MAGIC = 0x49484156454F5054
#: First eight bytes of every reply to an option.
REP_MAGIC = 0x0003E889045565A9

#: Bytes of the longest string: a name, a description, a message.
MAX_STRING = 4096
#: Bytes of zeroes that end the reply to EXPORT_NAME, without NO_ZEROES.
RESERVED_ZEROES = 124


class HandshakeFlag(IntFlag):
    """Of the server's greeting, and at the same bits (FLAG_C_*) of the client's answer."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class TransmissionFlag(IntFlag):
    """What an export serves."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Option(IntEnum):
    """What a client asks for before transmission."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Reply(IntEnum):
    """Types of the replies to options."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    """Types of the information in replies to INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


#: The one metadata context there is here, and the id under which it is negotiated.
BASE_ALLOCATION = "base:allocation"
BASE_ALLOCATION_ID = 1
