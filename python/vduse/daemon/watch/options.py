"""The options of programs that run for long: where their metrics are, how they log."""

from __future__ import annotations

import re
from typing import Any

from vduse.daemon.logs import FORMATS, LEVELS
from vduse.daemon.table import optional
from vduse.daemon.values import one_of

_TCP = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")


def metrics_option() -> Any:
    """``--metrics ADDRESS``."""
    return optional(
        "serve Prometheus metrics by HTTP there: HOST:PORT or unix:PATH (docs/operating.md)",
        metavar="ADDRESS",
        parse=address,
    )


def log_format_option() -> Any:
    """``--log-format text|json``."""
    return optional(
        "lines of the log on stderr: text for people (default), or json: an object a line",
        metavar="FORMAT",
        parse=one_of(*FORMATS),
    )


def log_level_option() -> Any:
    """``--log-level LEVEL``."""
    return optional(
        "least severity that is logged: error, warning (default), info or debug",
        metavar="LEVEL",
        parse=one_of(*LEVELS),
    )


def address(text: str) -> str:
    """As it is. ValueError: neither a port nor a socket."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return text
    found = _TCP.fullmatch(text)
    if found is None or int(found["port"]) > 0xFFFF:
        raise ValueError(f"'{text}' is no address: use 127.0.0.1:9123, [::1]:9123 or unix:PATH")
    return text


def host_and_port(text: str) -> tuple[str, str]:
    """Of an :func:`address` that is a port; an empty host is every one of this machine's."""
    found = _TCP.fullmatch(text)
    assert found is not None  # of address
    return found["v6"] or found["host"] or "", found["port"]
