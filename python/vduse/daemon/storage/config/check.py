"""From a document to the daemon's options, or to all its mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vduse.control.spelling import did_you_mean
from vduse.daemon.commands import StorageDaemonOptions
from vduse.daemon.qmp.arguments import read
from vduse.daemon.storage.config.document import At, Document, Table
from vduse.daemon.storage.config.plan import Entry, Plan
from vduse.daemon.storage.exports.export import ExportOptions
from vduse.daemon.storage.exports.nbd_server import NbdServerOptions
from vduse.daemon.storage.models import ChardevOptions, MonitorOptions
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.objects.options import ObjectOptions

#: Tables of tables: what is in each, and the key that a table's name is the value of.
_KINDS: dict[str, tuple[Any, str]] = {
    "object": (ObjectOptions, "id"),
    "blockdev": (Blockdev, "node-name"),
    "export": (ExportOptions, "id"),
    "chardev": (ChardevOptions, "id"),
    "monitor": (MonitorOptions, "id"),
}
_NBD_SERVER = "nbd-server"
#: Keys that are options of the command line, whose values they are checked as.
_SETTINGS = {
    name.replace("_", "-"): each.metadata["param"].parse
    for each in fields(StorageDaemonOptions)
    if (name := each.name) in ("pidfile", "metrics", "log_format", "log_level", "trace_json")
}


@dataclass(frozen=True)
class Checked:
    """What a file says."""

    #: By line; where there are any, the rest means nothing.
    mistakes: tuple[At, ...]
    #: Names and values of options, in the order in which they can be made.
    options: tuple[tuple[str, Table], ...] = ()
    #: Options of the command line that it has, by the fields of StorageDaemonOptions.
    settings: dict[str, str] = field(default_factory=dict)


def check_file(path: str) -> Checked:
    """OSError. What is no UTF-8 is a mistake."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return Checked((At(line, "not UTF-8"),))
    return check(text, path)


def check(text: str, file: str = "") -> Checked:
    """``file``: what it is called. Nothing is opened or looked for: files are the running daemon's
    affair."""
    document = Document(text)
    reading = _Reading(document)
    mistakes = {At(document.line(path), text) for path, text in reading.mistakes}
    return Checked(
        tuple(sorted({*document.mistakes, *mistakes}, key=lambda at: (at.line, at.text))),
        tuple(
            (entry.kind, Table(f"{file}:{document.line(entry.path)}", entry.raw))
            for entry in reading.plan.ordered()
        ),
        {name.replace("-", "_"): value for name, value in reading.settings.items()},
    )


class _Reading:
    """Of one document; ``mistakes``: paths and what is wrong there."""

    def __init__(self, document: Document) -> None:
        self.mistakes: list[tuple[str, str]] = []
        #: By key.
        self.settings: dict[str, str] = {}
        entries = list(self._entries(document.value))
        self.plan = Plan(entries, self.settings.get("metrics"))
        self.mistakes += self.plan.mistakes()

    def _entries(self, value: dict[str, Any]) -> Iterator[Entry]:
        for kind, given in value.items():
            if kind in _KINDS:
                yield from self._tables(kind, given)
            elif kind == _NBD_SERVER:
                yield self._entry(kind, kind, "", given, NbdServerOptions)
            elif kind in _SETTINGS:
                self._setting(kind, given)
            else:
                hint = did_you_mean(kind, [*_KINDS, _NBD_SERVER, *_SETTINGS])
                self._wrong(kind, f"'{kind}' is unexpected{hint}")

    def _setting(self, key: str, given: Any) -> None:
        if not isinstance(given, str):
            self._wrong(key, f"Invalid parameter type for '{key}', expected: string")
            return
        try:
            self.settings[key] = _SETTINGS[key](given)
        except ValueError as error:
            self._wrong(key, f"Parameter '{key}': {error}")

    def _tables(self, kind: str, given: Any) -> Iterator[Entry]:
        model, key = _KINDS[kind]
        if not isinstance(given, dict):
            self._wrong(kind, f"'{kind}' is a table of tables: [{kind}.NAME]")
            return
        for name, raw in given.items():
            path = f"{kind}.{name}"
            if isinstance(raw, dict):
                if key in raw:
                    self._wrong(f"{path}.{key}", f"Parameter '{key}' is the table's name already")
                raw = {**raw, key: name}
            yield self._entry(kind, path, name, raw, model)

    def _entry(self, kind: str, path: str, name: str, raw: Any, model: Any) -> Entry:
        if not isinstance(raw, dict):
            self._wrong(path, f"'{path}' is a table: [{path}]")
            return Entry(kind, path, name, {}, None)
        value, mistakes = read(raw, model)
        for mistake in mistakes:
            self._wrong(f"{path}.{mistake.path}", mistake.text)
        return Entry(kind, path, name, raw, value)

    def _wrong(self, path: str, text: str) -> None:
        self.mistakes.append((path, text))
