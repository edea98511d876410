"""The command table as pages: what the parsers know, without their layout."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vduse.daemon.cli import command_parser
from vduse.daemon.commands import TABLE
from vduse.daemon.table import Command, Group


@dataclass(frozen=True)
class Entry:
    """An option or an argument."""

    #: As it is typed: ``--name VALUE``.
    term: str
    text: str


@dataclass(frozen=True)
class Page:
    """A command."""

    #: With ``vduse`` before it.
    name: str
    #: One line.
    summary: str
    description: str
    synopsis: str
    entries: tuple[Entry, ...]
    #: Command lines and what each is for.
    examples: tuple[tuple[str, str], ...]


def pages(table: Sequence[Command[Any, Any] | Group] = TABLE) -> Iterator[Page]:
    """One a command, in the table's order."""
    for entry in table:
        if isinstance(entry, Group):
            yield from pages(entry.commands)
        else:
            yield _page(entry)


def _page(command: Command[Any, Any]) -> Page:
    actions = [action for action in command_parser(command)._actions if action.help]
    words = ["vduse", command.name, "[options]"]
    for action in actions:
        if not action.option_strings:
            word = _metavar(action)
            words.append(f"[{word}]" if action.nargs == "?" else word)
    return Page(
        name=f"vduse {command.name}",
        summary=command.help,
        description=command.description,
        synopsis=" ".join(words),
        entries=tuple(Entry(_term(action), _text(action)) for action in actions),
        examples=command.examples,
    )


def _term(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    if not names:
        return _metavar(action)
    if action.nargs == 0:
        return names
    value = _metavar(action)
    return f"{names}[{value}]" if value.startswith("=") else f"{names} {value}"


def _metavar(action: argparse.Action) -> str:
    assert isinstance(action.metavar, str)
    return action.metavar


def _text(action: argparse.Action) -> str:
    text = str(action.help)
    return "print the help" if action.dest == "help" else text
