"""The shape of a command: what the command line, its help and other front ends are made from.

A command's options are the fields of a frozen dataclass; its result is a dataclass of facts,
which ``--json`` prints as they are and ``show`` prints for people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from rich.console import Console

from vduse.daemon.signals import Stopper

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Context:
    """What a running command has of its surroundings."""

    #: Where facts go.
    out: Console
    #: Where progress goes; not for machines.
    err: Console
    stopper: Stopper
    #: Facts go out as JSON: nothing else may.
    json: bool = False


@dataclass(frozen=True)
class Param:
    """How one option is given. ``parse`` turns its text into the field's value; its ValueError
    is shown to the person as it is."""

    kind: Literal[
        "argument", "required", "option", "flag", "repeatable", "ordered", "switch", "behind"
    ]
    help: str
    parse: Callable[[str], Any] = str
    metavar: str | None = None
    #: The default as the help shows it; None: there is none.
    shown_default: str | None = None
    #: Of ``ordered``: the options, by name, and the help of each.
    options: tuple[tuple[str, str], ...] = ()


def argument(help: str, *, metavar: str, parse: Callable[[str], Any] = str) -> Any:
    """A positional argument that may be left out; the field is None then."""
    return dataclasses.field(
        default=None, metadata={"param": Param("argument", help, parse, metavar)}
    )


def required(help: str, *, metavar: str, parse: Callable[[str], Any] = str) -> Any:
    """A positional argument that must be there."""
    return dataclasses.field(metadata={"param": Param("required", help, parse, metavar)})


def option(default: str, help: str, *, metavar: str, parse: Callable[[str], Any] = str) -> Any:
    """``--name VALUE``; the default is given as a person would type it."""
    param = Param("option", help, parse, metavar, default)
    return dataclasses.field(default=parse(default), metadata={"param": param})


def optional(help: str, *, metavar: str, parse: Callable[[str], Any] = str) -> Any:
    """``--name VALUE``, without a default; the field is None where it is not given."""
    return dataclasses.field(
        default=None, metadata={"param": Param("option", help, parse, metavar)}
    )


def repeatable(help: str, *, metavar: str, parse: Callable[[str], Any] = str) -> Any:
    """``--name VALUE``, any number of times; the field is a tuple in the order given."""
    return dataclasses.field(
        default=(), metadata={"param": Param("repeatable", help, parse, metavar)}
    )


def ordered(*options: tuple[str, str], metavar: str) -> Any:
    """Several options, each any number of times, whose common order matters: the field is a tuple
    of names and values as they were given. ``options``: name and help."""
    param = Param("ordered", "", metavar=metavar, options=options)
    return dataclasses.field(default=(), metadata={"param": param})


def switch(help: str, *, metavar: str) -> Any:
    """``--name`` or ``--name=VALUE``, never ``--name VALUE``, whose value might be meant as an
    argument. The field is None where it is not given, empty where it has no value."""
    return dataclasses.field(default=None, metadata={"param": Param("switch", help, str, metavar)})


def flag(help: str) -> Any:
    """``--name``; False where not given."""
    return dataclasses.field(default=False, metadata={"param": Param("flag", help)})


def behind(help: str, *, metavar: str) -> Any:
    """All that comes behind ``--``, as it is; at most one field of a command's."""
    return dataclasses.field(default=(), metadata={"param": Param("behind", help, str, metavar)})


@dataclass(frozen=True)
class Command(Generic[Options, Facts]):
    """One row of the table."""

    #: One word; a group's command has the group's before it.
    name: str
    #: One line, for the list of commands.
    help: str
    description: str
    #: Command lines and what each is for.
    examples: tuple[tuple[str, str], ...]
    options: type[Options]
    #: Facts, or a generator of those there are one after another: each is printed as it
    #: comes, as JSON in a line of its own; the last one counts for the exit code.
    run: Callable[[Options, Context], Facts | Generator[Facts]]
    show: Callable[[Facts, Context], None]
    exit_code: Callable[[Facts], int] = lambda facts: 0

    def params(self) -> dict[str, Param]:
        """The options by field name, in the order of declaration."""
        fields = dataclasses.fields(self.options)
        return {field.name: field.metadata["param"] for field in fields}


@dataclass(frozen=True)
class Group:
    """A row of the table with commands of its own."""

    name: str
    #: One line, for the list of commands.
    help: str
    description: str
    commands: tuple[Command[Any, Any], ...]

    @property
    def examples(self) -> tuple[tuple[str, str], ...]:
        """The first one of each command."""
        return tuple(command.examples[0] for command in self.commands)
