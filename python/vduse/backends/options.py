"""The spelling ``NAME,key=value,...`` (QEMU's): what takes parameters on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vduse.backends.errors import BackendError
from vduse.control.spelling import did_you_mean


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """The name before the first comma, and what follows by its keys. BackendError: a part
    without ``=``, an empty key, a key given twice."""
    name, *parts = text.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise BackendError(f"{text}: '{part}' is not key=value")
        if key in options:
            raise BackendError(f"{text}: {key} is given twice")
        options[key] = value
    return name, options


def parse_options(
    name: str, options: Mapping[str, str], parsers: Mapping[str, Callable[[str], Any]]
) -> dict[str, Any]:
    """Every value by its key's parser, which raises ValueError with one line. BackendError: an
    unknown key, or what a parser said."""
    parsed = {}
    for key, value in options.items():
        if key not in parsers:
            known = ", ".join(parsers) or "none"
            hint = did_you_mean(key, parsers) or f"; it has {known}"
            raise BackendError(f"{name}: no such key '{key}'{hint}")
        try:
            parsed[key] = parsers[key](value)
        except ValueError as error:
            raise BackendError(f"{name}: {key}: {error}") from None
    return parsed
