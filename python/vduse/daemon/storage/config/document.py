"""A TOML document with its lines, and all that is no TOML in it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vduse.daemon.storage.config.lines import find_lines

#: What tomllib says of a place.
_PLACE = re.compile(r" \(at line (\d+), column \d+\)$")
#: Errors after which no more is read: they are the first one's consequences by then.
_MOST = 20
#: Takes a table's keys where its header is wrong.
_NOWHERE = "no such table"


@dataclass(frozen=True)
class At:
    """A mistake in a file."""

    #: From 1.
    line: int
    #: One line for a person.
    text: str


@dataclass(frozen=True)
class Table:
    """An option's value, from a file."""

    #: FILE:LINE.
    place: str
    value: Mapping[str, Any]


class Document:
    """A document. Lines that are no TOML are left out, and are among :attr:`mistakes`."""

    def __init__(self, text: str) -> None:
        self.mistakes: list[At] = []
        lines = text.replace("\r\n", "\n").split("\n")
        last = len(lines)
        seen: set[int] = set()
        self.value: dict[str, Any] = {}
        self._lines: dict[str, int] = {}
        while True:
            try:
                self.value = tomllib.loads("\n".join(lines))
                break
            except (tomllib.TOMLDecodeError, RecursionError) as error:
                found = _PLACE.search(str(error))
                line = int(found[1]) if found else last
                if line in seen or len(seen) == _MOST:
                    return
                seen.add(line)
                self.mistakes.append(At(line, _PLACE.sub("", str(error))))
                is_header = lines[line - 1].lstrip().startswith("[")
                lines[line - 1] = f'["{_NOWHERE} {line}"]' if is_header else ""
        self._lines = find_lines("\n".join(lines))
        for key in [key for key in self.value if key.startswith(_NOWHERE)]:
            del self.value[key]

    def line(self, path: str) -> int:
        """Of what is at ``path``; where that is not there, of what it would be in."""
        while path and path not in self._lines:
            path = path.rpartition(".")[0]
        return self._lines.get(path, 1)
