"""Taps that write what they see to a file as it happens: as a recording, or as readable lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic

from vduse.channel.line_writer import LineWriter
from vduse.channel.recording import Counted, End, Entry, Header, Lost, encode, encode_header
from vduse.channel.tap import Record, RecordTap

#: Makes a line of an entry, and of the clock when the recording began.
_Encode = Callable[[Entry, float], bytes]


def utc_now() -> str:
    """For :attr:`Header.started`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class FileTap(RecordTap):
    """A tap on a file; never waits for it (:class:`~vduse.channel.line_writer.LineWriter`)."""

    def __init__(self, fd: int, name: str, first: bytes, encode: _Encode) -> None:
        """Takes over ``fd``; ``name`` is the file's in log lines, ``first`` its first line."""
        self._encode = encode
        self._start = monotonic()
        self._writer = LineWriter(fd, name, lambda count: encode(Lost(count), self._start))
        self._writer.write(first)

    def add(self, record: Record | Counted | End) -> None:
        self._writer.write(self._encode(record, self._start))

    def count(self, device: str, calls: Mapping[tuple[int, int], int]) -> None:
        """Calls of a device's data path that were not seen one by one: how often, by number, and
        errno or 0."""
        now = monotonic()
        for (nr, number), count in sorted(calls.items()):
            self.add(Counted(device, now, nr, -number, count))

    def close(self) -> None:
        """Nothing comes any more."""
        self.add(End(monotonic()))
        self._writer.close()


def recording_tap(fd: int, name: str, header: Header) -> FileTap:
    """Writes a recording (docs/trace.md)."""
    return FileTap(fd, name, encode_header(header), encode)


def text_tap(fd: int, name: str, header: Header) -> FileTap:
    """Writes a line for people: seconds, device, and what crossed."""
    return FileTap(fd, name, encode_heading(header), encode_text)


#: How a file of such lines begins.
TEXT_BEGIN = b"# vduse trace: "


def encode_heading(header: Header) -> bytes:
    """What the lines are about, with its newline."""
    return TEXT_BEGIN + _bytes(heading(header))


def encode_text(entry: Entry, start: float) -> bytes:
    """A line with its newline."""
    match entry:
        case Lost():
            return _bytes(f"{'':10} {entry.line()}")
        case End():
            return _bytes(f"{entry.time - start:10.6f} end")
    return _bytes(f"{entry.time - start:10.6f} {entry.line()}")


def heading(header: Header) -> str:
    """Whose calls and messages these are, in a line."""
    framework = (
        f"kernel {header.kernel}"
        if header.framework == "kernel"
        else f"the embedded framework as kernel {header.kernel}"
    )
    program = " ".join(header.program) or "a program"
    return f"{program}, on {framework}, {header.started}"


def printable(text: str) -> str:
    """Without what a terminal would obey: names are other people's."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _bytes(line: str) -> bytes:
    return printable(line).encode("utf-8", "backslashreplace") + b"\n"
