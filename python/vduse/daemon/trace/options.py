"""`--trace` and `--trace-json`, of every command that serves devices."""

from __future__ import annotations

from typing import Any

from vduse.daemon.table import optional, switch
from vduse.daemon.values import path


def trace_option() -> Any:
    """``--trace[=FILE]``; the field is None where it is not given, empty for stderr."""
    return switch(
        "a line for every call and message, as it happens: on stderr, or with --trace=FILE there",
        metavar="FILE",
    )


def trace_json_option(what: str = "every call and message") -> Any:
    """``--trace-json FILE``. ``what``: is recorded."""
    text = f"record {what} there, for vduse trace (docs/trace.md)"
    return optional(text, metavar="FILE", parse=path)
