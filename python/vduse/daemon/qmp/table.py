"""The table of commands that a server offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from vduse.control.spelling import did_you_mean
from vduse.daemon.qmp.arguments import Model, convert
from vduse.daemon.qmp.errors import CommandNotFound

#: Negotiation: the session's own affair, but a command of the table's to its clients.
CAPABILITIES = "qmp_capabilities"


class NoArguments(Model, frozen=True):
    """Of commands that take none."""


class CommandInfo(Model, frozen=True):
    """CommandInfo of QEMU's qapi/control.json."""

    name: str


@dataclass(frozen=True)
class QmpCommand:
    """One row. ``run`` is called with an instance of ``arguments``, a struct or a union of tagged
    structs; what it returns is of type ``result``, and None is the empty object. It may wait: those
    of one connection run one after the other, those of several at the same time. QmpError is the
    error that is answered."""

    name: str
    #: One line.
    doc: str
    run: Callable[[Any], Any]
    arguments: Any = NoArguments
    result: Any = None
    #: Called on the server's loop once the answer of a success is on its way; must not wait.
    answered: Callable[[], None] | None = None

    def call(self, arguments: Any) -> Any:
        """Runs it; what ``return`` is of the answer."""
        result = self.run(arguments)
        return {} if result is None else msgspec.to_builtins(result)

    def parse(self, raw: Any, *, strings: bool = False) -> Any:
        """An instance of ``arguments``; see :func:`~vduse.daemon.qmp.arguments.convert`."""
        return convert(raw, self.arguments, strings=strings)


class CommandTable:
    """Commands by name, with ``query-commands``, which lists them."""

    def __init__(self, commands: Iterable[QmpCommand]) -> None:
        """ValueError: two of one name."""
        query = QmpCommand(
            name="query-commands",
            doc="The commands that there are",
            run=lambda _: [CommandInfo(name=name) for name in (CAPABILITIES, *self._commands)],
            result=list[CommandInfo],
        )
        self._commands: dict[str, QmpCommand] = {}
        for command in (*commands, query):
            if command.name in self._commands or command.name == CAPABILITIES:
                raise ValueError(f"two commands are called {command.name}")
            self._commands[command.name] = command

    def __iter__(self) -> Iterator[QmpCommand]:
        return iter(self._commands.values())

    def __getitem__(self, name: str) -> QmpCommand:
        """CommandNotFound."""
        try:
            return self._commands[name]
        except KeyError:
            hint = did_you_mean(name, self._commands)
            raise CommandNotFound(f"The command {name} has not been found{hint}") from None
