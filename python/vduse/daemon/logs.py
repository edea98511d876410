"""The log, on stderr: one record a line, as text or as JSON, and no more lines than somebody reads.

Records say what they are about in fields: ``log.warning(..., extra={"export": id})``, any of
:data:`SUBJECTS`. JSON shows them by name; the text of a message has them in it."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import TextIO

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)

#: Names of formats.
FORMATS = ("text", "json")
#: Names of levels, the fewest lines first.
LEVELS = ("error", "warning", "info", "debug")
#: What a record may be about.
SUBJECTS = ("device", "export", "node")

#: Records of one kind that are shown in :data:`PAUSE` seconds.
MOST_ALIKE = 10
PAUSE = 60.0
#: Kinds that are remembered; with more, the oldest is forgotten.
_MOST_KINDS = 1024

#: C0, DEL, C1, and what else ends a line (UAX 14).
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@contextmanager
def put_back() -> Iterator[None]:
    """After the block the package's logger is as it was before: whoever runs a command as a
    function has a logging of its own."""
    root = logging.getLogger("vduse")
    handlers, propagate, level = list(root.handlers), root.propagate, root.level
    try:
        yield
    finally:
        root.handlers[:], root.propagate = handlers, propagate
        root.setLevel(level)


def setup(verbosity: int) -> None:
    """Warnings only at 0; progress of the control path at 1 (``-v``), all at 2 (``-vv``)."""
    handler = _Stderr()
    handler.setFormatter(_Text())
    root = logging.getLogger("vduse")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(_LEVELS[min(verbosity, len(_LEVELS) - 1)])


def adjust(*, format: str | None, level: str | None) -> None:
    """After :func:`setup`: one of :data:`FORMATS`, one of :data:`LEVELS`; None: as it is."""
    root = logging.getLogger("vduse")
    if format == "json":
        for handler in root.handlers:
            handler.setFormatter(_Json())
    if level is not None:
        root.setLevel(level.upper())


class Bounded:
    """Of each kind of record :data:`MOST_ALIKE` in :data:`PAUSE` seconds: a client, a guest or a
    server may cause as many as it likes. A kind is a place in the program, and what the record is
    about. From any thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """``clock``: seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        #: When the kind's time began, shown since then, left out since one was shown.
        self._kinds: dict[tuple[object, ...], tuple[float, int, int]] = {}

    def admit(self, record: logging.LogRecord) -> int | None:
        """How many of its kind were left out since the last one that was shown; None: this one is
        to be left out, too."""
        about = (getattr(record, subject, None) for subject in SUBJECTS)
        kind = (record.name, record.lineno, *about)
        now = self._clock()
        with self._lock:
            # Put back as the newest: the dictionary's order is that of use.
            begin, shown, left_out = self._kinds.pop(kind, (now, 0, 0))
            if now - begin >= PAUSE:
                begin, shown = now, 0
            is_shown = shown < MOST_ALIKE
            self._kinds[kind] = (begin, shown + is_shown, 0 if is_shown else left_out + 1)
            if len(self._kinds) > _MOST_KINDS:
                del self._kinds[next(iter(self._kinds))]
        return left_out if is_shown else None


class _Stderr(logging.StreamHandler[TextIO]):
    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._bounded = Bounded()

    def emit(self, record: logging.LogRecord) -> None:
        # Who debugs wants all.
        if not logging.getLogger("vduse").isEnabledFor(logging.DEBUG):
            left_out = self._bounded.admit(record)
            if left_out is None:
                return
            if left_out:
                record = logging.makeLogRecord(record.__dict__)
                record.msg = f"{record.getMessage()} ({left_out} like it not shown)"
                record.args = None
        super().emit(record)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        source = record.name.removeprefix("vduse.").replace("_", " ")
        message = record.getMessage()
        # A line's end that the program wrote itself is before a traceback.
        lines = message.split("\n") if "\n" in str(record.msg) else [message]
        record.message = "\n".join(_CONTROL.sub(_escape, line) for line in lines)
        line = f"vduse: {record.levelname.lower()}: {source}: {record.message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    """RFC 8259 in ASCII: whatever is in a message, it is one line."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "source": record.name.removeprefix("vduse."),
            "message": record.getMessage(),
        }
        for subject in SUBJECTS:
            if (about := getattr(record, subject, None)) is not None:
                fields[subject] = str(about)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _escape(control: re.Match[str]) -> str:
    return control[0].encode("unicode_escape").decode()
