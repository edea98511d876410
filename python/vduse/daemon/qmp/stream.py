"""Cuts a stream of bytes into JSON values, bounded in length and depth; goes on after garbage."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vduse.daemon.qmp.errors import QmpError

#: Bytes of the longest value.
MAX_LENGTH = 1 << 20
#: Most arrays and objects within each other.
MAX_DEPTH = 128

_SPACE = re.compile(rb"[ \t\r\n]*")
#: What ends a keyword or a number.
_WORD_END = re.compile(rb'[ \t\r\n{\["]')
_NESTING = re.compile(rb'["{}\[\]]')
#: What ends a string or a part of it; control characters may not be in one (RFC 8259, 7).
_STRING_STOP = re.compile(rb'["\\\x00-\x1f]')
#: Where reading begins again after an error.
_RESUME = re.compile(rb"[\n{]")
_CLOSERS = {ord("{"): ord("}"), ord("["): ord("]")}


class JsonStream:
    """Feed it what arrives, take whole values. They are balanced and may still be no JSON.

    After an error the rest of the line, up to the next ``{``, is dropped: one mistake, one error.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | QmpError]:
        """The values that ``data`` completes, and an error where there is none."""
        self._buffer += data
        while True:
            try:
                value = self._next()
            except QmpError as error:
                self._start()
                self._skipping = True
                yield error
                continue
            if value is None:
                return
            yield value

    def _start(self) -> None:
        """At the beginning of a value, the first byte of the buffer."""
        #: How far the value was looked at.
        self._at = 0
        #: The closers of what is open.
        self._open = bytearray()
        self._in_string = False

    def _next(self) -> bytes | None:
        """The next value; None: there is none as yet."""
        if self._at == 0 and not self._find_begin():
            return None
        end = self._find_end()
        if end is None:
            if len(self._buffer) > MAX_LENGTH:
                raise self._fault(self._at, f"JSON value of more than {MAX_LENGTH} bytes")
            return None
        if end > MAX_LENGTH:
            raise self._fault(end, f"JSON value of more than {MAX_LENGTH} bytes")
        value = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._start()
        return value

    def _find_begin(self) -> bool:
        """Drops what comes before a value."""
        if self._skipping:
            resume = _RESUME.search(self._buffer)
            if resume is None:
                self._buffer.clear()
                return False
            del self._buffer[: resume.start()]
            self._skipping = False
        space = _SPACE.match(self._buffer)
        if space is not None:
            del self._buffer[: space.end()]
        return bool(self._buffer)

    def _find_end(self) -> int | None:
        """Where the value ends; None: not within what has arrived."""
        if self._at == 0 and self._buffer[0] not in b'{["':
            word = _WORD_END.search(self._buffer, 1)
            return None if word is None else word.start()
        while True:
            pattern = _STRING_STOP if self._in_string else _NESTING
            found = pattern.search(self._buffer, self._at)
            if found is None:
                self._at = len(self._buffer)
                return None
            byte, self._at = found[0][0], found.end()
            if byte == ord("\\"):
                if self._at == len(self._buffer):
                    self._at -= 1  # what it escapes has not arrived
                    return None
                self._at += 1
            elif byte == ord('"'):
                self._in_string = not self._in_string
            elif self._in_string:
                raise self._fault(found.start(), "JSON parse error, control character in a string")
            elif byte in _CLOSERS:
                self._open.append(_CLOSERS[byte])
                if len(self._open) > MAX_DEPTH:
                    raise self._fault(self._at, "JSON nesting depth limit exceeded")
            elif self._open.pop() != byte:
                raise self._fault(self._at, f"JSON parse error, stray '{chr(byte)}'")
            if not self._open and not self._in_string:
                return self._at

    def _fault(self, at: int, text: str) -> QmpError:
        """An error; reading goes on at ``at``."""
        del self._buffer[:at]
        return QmpError(text)
