"""QEMU's two spellings of options (util/keyval.c, util/qemu-option.c in its tree), and JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from vduse.daemon.qmp.errors import ArgumentError

_FRAGMENT = re.compile(r"[A-Za-z0-9_-]+")


def parse_object(text: str, implied: str | None) -> tuple[dict[str, Any], bool]:
    """``KEY=VALUE,...`` with dots for what is within (``cache.direct=on``), or a JSON object.
    ``implied``: the key of a first part that has none; None: it needs one. A comma in
    a value is doubled; the last of several values of a key counts.

    The object, and whether its values are strings. ArgumentError."""
    if text.startswith("{"):
        return _parse_json(text), False
    values: dict[str, Any] = {}
    for key, value in _parts(text, implied):
        if value is None:
            raise ArgumentError(f"Expected '=' after parameter '{key}'")
        fragments = key.split(".")
        if not all(map(_FRAGMENT.fullmatch, fragments)):
            raise ArgumentError(f"Invalid parameter '{key}'")
        _put(values, fragments, value)
    return values, True


def parse_flat(text: str, implied: str) -> dict[str, str]:
    """The older spelling, without dots or JSON: ``NAME`` alone is ``NAME=on``, and ``noNAME`` is
    ``NAME=off``. ArgumentError."""
    values = {}
    for key, value in _parts(text, implied):
        if value is None:
            negated = key.startswith("no")
            key, value = (key[2:], "off") if negated else (key, "on")
        if not _FRAGMENT.fullmatch(key):
            raise ArgumentError(f"Invalid parameter '{key}'")
        values[key] = value
    return values


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"JSON parse error, {error}") from None
    if not isinstance(value, dict):  # not with a brace at its start
        raise ArgumentError("a JSON object is expected")
    return value


def _parts(text: str, implied: str | None) -> Iterator[tuple[str, str | None]]:
    """Keys and values; None: there is no ``=``."""
    for number, part in enumerate(_split(text)):
        key, equals, value = part.partition("=")
        if equals:
            # Only values have doubled commas.
            yield key, value.replace(",,", ",")
        elif number == 0 and implied is not None:
            yield implied, part.replace(",,", ",")
        else:
            yield part, None


def _split(text: str) -> Iterator[str]:
    """At single commas; one at the end ends nothing."""
    begin = at = 0
    while at < len(text):
        if text[at] != ",":
            at += 1
        elif text[at : at + 2] == ",,":
            at += 2
        else:
            yield text[begin:at]
            begin = at = at + 1
    if begin < len(text):
        yield text[begin:]


def _put(values: dict[str, Any], fragments: list[str], value: str) -> None:
    *folders, last = fragments
    inner: Any = values
    for depth, folder in enumerate(folders, 1):
        inner = inner.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise ArgumentError(f"Parameters '{'.'.join(fragments[:depth])}.*' used inconsistently")
    if isinstance(inner.get(last), dict):
        raise ArgumentError(f"Parameters '{'.'.join(fragments)}.*' used inconsistently")
    inner[last] = value
