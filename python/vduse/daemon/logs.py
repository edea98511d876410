"""Log lines on stderr, in the user's terms."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        source = record.name.removeprefix("vduse.").replace("_", " ")
        record.message = record.getMessage()
        line = f"vduse: {record.levelname.lower()}: {source}: {record.message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger("vduse")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(_LEVELS[min(verbosity, len(_LEVELS) - 1)])
