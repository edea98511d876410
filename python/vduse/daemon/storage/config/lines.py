"""Where a TOML document says what: tomllib, which reads it, does not tell.

A scanner of the document's outline: headers, keys, brackets and quotes. It is only asked about
documents that tomllib has read, so it does not judge."""

from __future__ import annotations

import re
import tomllib

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN = re.compile(r"[^,\]}#\n]*")
#: A string of any kind. Three quotes end with as many, and up to two more belong to the text.
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}' + r"|'''(?:[^']|'(?!''))*'{3,5}" + r"|"
    r'"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'",
    re.DOTALL,
)


def find_lines(text: str) -> dict[str, int]:
    """The line, from 1, of each key and table by its path: keys with dots between them, numbers of
    elements among them."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        #: How far lines are counted, and how many.
        self._counted, self._line = 0, 1
        #: Elements of arrays of tables, by path.
        self._elements: dict[str, int] = {}

    def document(self) -> None:
        table: list[str] = []
        while self._skip(_BLANK):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> list[str]:
        line = self._here()
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        keys = self._keys()
        self._at += 2 if is_array else 1
        path: list[str] = []
        for number, key in enumerate(keys, 1):
            path.append(key)
            name = ".".join(path)
            self.lines.setdefault(name, line)
            if is_array and number == len(keys):
                self._elements[name] = self._elements.get(name, 0) + 1
            if name in self._elements:
                path.append(str(self._elements[name] - 1))
        self.lines.setdefault(".".join(path), line)
        return path

    def _pair(self, table: list[str]) -> None:
        line = self._here()
        path = [*table]
        for key in self._keys():
            path.append(key)
            self.lines.setdefault(".".join(path), line)
        self._at += 1  # =
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            self._skip(_SPACE)
            if quoted := _STRING.match(self._text, self._at):
                keys.append(tomllib.loads(f"key = {quoted[0]}")["key"])
                self._at = quoted.end()
            else:
                bare = _BARE.match(self._text, self._at)
                assert bare is not None
                keys.append(bare[0])
                self._at = bare.end()
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _value(self, path: list[str]) -> None:
        first = self._text[self._at]
        if first == "[":
            self._within("]", path, is_array=True)
        elif first == "{":
            self._within("}", path, is_array=False)
        else:
            found = _STRING.match(self._text, self._at) or _PLAIN.match(self._text, self._at)
            assert found is not None
            self._at = found.end()

    def _within(self, end: str, path: list[str], *, is_array: bool) -> None:
        self._at += 1
        number = 0
        while self._skip(_BLANK) and self._text[self._at] != end:
            if self._text[self._at] == ",":
                self._at += 1
                continue
            if is_array:
                element = [*path, str(number)]
                self.lines.setdefault(".".join(element), self._here())
                self._value(element)
                number += 1
            else:
                self._pair(path)
        self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Whether there is more."""
        found = pattern.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        return self._at < len(self._text)

    def _here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line
