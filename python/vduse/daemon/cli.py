"""The command line, made from the command table."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vduse.control.spelling import did_you_mean
from vduse.daemon.errors import UserError
from vduse.daemon.table import Command, Group, Param

#: Characters of an example that its purpose follows in the same line.
_EXAMPLE_WIDTH = 42

Table = Sequence[Command[Any, Any] | Group]

_HELP = ("-h", "--help")


@dataclasses.dataclass(frozen=True)
class Invocation:
    """A command line, parsed."""

    command: Command[Any, Any]
    options: Any
    json: bool
    verbosity: int


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help shows how)")


class _InOrder(argparse.Action):
    """Options of one field: each adds its name and its value."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        former = getattr(namespace, self.dest)
        name = self.option_strings[0].removeprefix("--")
        setattr(namespace, self.dest, [*former, (name, values)])


def parse(table: Table, argv: Sequence[str]) -> Invocation:
    """UserError for what the table does not have; SystemExit(0) after ``--help``."""
    command, rest = _find(table, argv, "vduse")
    parser = command_parser(command)
    field, rest, after = _behind(command, rest)
    values, unknown = parser.parse_known_args(_switches(command, rest))
    if field is not None:
        early = {*getattr(values, field), *unknown}
        first = next((word for word in rest if word in early), "-")
        if not first.startswith("-"):
            parser.error(f"'{first}' comes behind --, with all that belongs to it")
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        # Behind "--" even the name of an option is an argument.
        is_option = unknown[0].startswith("-") and unknown[0] not in known
        hint = did_you_mean(unknown[0], known) if is_option else ""
        what = "option" if is_option else "argument"
        parser.error(f"unknown {what} '{unknown[0]}'{hint}")
    given = vars(values)
    json, verbosity = given.pop("json"), given.pop("verbose")
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    if field is not None:
        given[field] = tuple(after)
    return Invocation(command, command.options(**given), json, verbosity)


def _switches(command: Command[Any, Any], argv: Sequence[str]) -> list[str]:
    """A switch without a value gets the empty one: it must not take the next word for it."""
    names = {f"--{_dashed(name)}" for name, p in command.params().items() if p.kind == "switch"}
    end = argv.index("--") if "--" in argv else len(argv)
    return [f"{word}=" if word in names else word for word in argv[:end]] + list(argv[end:])


def overview_asked(table: Table, argv: Sequence[str]) -> str | None:
    """The help that a command line without a command asks for, the table's or a group's; None:
    there is a command, or what should be one."""
    if not argv or argv[0] in _HELP:
        return overview(table)
    group = _by_name(table).get(argv[0])
    if isinstance(group, Group) and (len(argv) == 1 or argv[1] in _HELP):
        return _group_overview(group)
    return None


def _find(
    table: Table, argv: Sequence[str], program: str
) -> tuple[Command[Any, Any], Sequence[str]]:
    """The command that ``argv`` begins with, and what follows."""
    name, *rest = argv
    by_name = _by_name(table)
    how = f"({program} --help lists them)"
    if name not in by_name and name.startswith("-"):
        raise UserError(f"a command comes first, then '{name}' {how}")
    if name not in by_name:
        raise UserError(f"unknown command '{name}'{did_you_mean(name, by_name)} {how}")
    found = by_name[name]
    if isinstance(found, Group):
        return _find(found.commands, rest, f"{program} {name}")
    return found, rest


def _behind(
    command: Command[Any, Any], rest: Sequence[str]
) -> tuple[str | None, Sequence[str], Sequence[str]]:
    """The field for what is behind ``--``, if the command has one; what is before; what is
    behind."""
    field = next((name for name, p in command.params().items() if p.kind == "behind"), None)
    if field is None or "--" not in rest:
        return field, rest, ()
    at = rest.index("--")
    return field, rest[:at], rest[at + 1 :]


def _by_name(table: Table) -> dict[str, Command[Any, Any] | Group]:
    """By the last word: the one that is typed."""
    return {entry.name.split()[-1]: entry for entry in table}


def command_parser(command: Command[Any, Any]) -> argparse.ArgumentParser:
    """The parser of one command, with its help."""
    examples = "\n".join(f"  {line}\n      {what}" for line, what in command.examples)
    after = [p.metavar for p in command.params().values() if p.kind == "behind"]
    parser = _Parser(
        prog=f"vduse {command.name}",
        usage=f"vduse {command.name} [options] -- {after[0]}" if after else None,
        description=command.description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    defaults = {f.name: f.default for f in dataclasses.fields(command.options)}
    for name, param in command.params().items():
        _add(parser, name, param, defaults[name])
    version = f"vduse {importlib.metadata.version('vduse')}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="log what happens; twice: everything"
    )
    return parser


def overview(table: Table) -> str:
    """What ``vduse --help`` prints."""
    rows = "\n".join(f"  vduse {command.name:14} {command.help}" for command in table)
    first = "\n".join(_example(*command.examples[0]) for command in table)
    return (
        "vDPA devices in userspace: write a virtio device once, attach it anywhere.\n\n"
        f"commands:\n{rows}\n\nexamples:\n{first}\n\n"
        "vduse COMMAND --help shows a command's options; vduse --version the version.\n"
    )


def _example(line: str, what: str) -> str:
    """In one line where it has room."""
    space = " " if len(line) <= _EXAMPLE_WIDTH else "\n      "
    return f"  {line:{_EXAMPLE_WIDTH}}{space}{what}"


def _group_overview(group: Group) -> str:
    """What ``vduse GROUP`` prints."""
    width = max(len(command.name) for command in group.commands)
    rows = "\n".join(f"  vduse {c.name:{width}}  {c.help}" for c in group.commands)
    first = "\n".join(_example(line, what) for line, what in group.examples)
    return (
        f"{group.description}\n\ncommands:\n{rows}\n\nexamples:\n{first}\n\n"
        f"vduse {group.name} COMMAND --help shows a command's options.\n"
    )


def _add(parser: argparse.ArgumentParser, name: str, param: Param, default: Any) -> None:
    flag = "--" + _dashed(name)
    if param.kind == "flag":
        parser.add_argument(flag, action="store_true", help=param.help)
        return
    parse = _shown(param.parse)
    if param.kind == "required":
        parser.add_argument(name, type=parse, metavar=param.metavar, help=param.help)
        return
    if param.kind == "argument":
        parser.add_argument(
            name, nargs="?", default=default, type=parse, metavar=param.metavar, help=param.help
        )
        return
    if param.kind == "behind":
        parser.add_argument(name, nargs="*", metavar=f"-- {param.metavar}", help=param.help)
        return
    if param.kind == "repeatable":
        parser.add_argument(
            flag, action="append", default=[], type=parse, metavar=param.metavar, help=param.help
        )
        return
    if param.kind == "ordered":
        for option, text in param.options:
            parser.add_argument(
                f"--{option}",
                dest=name,
                action=_InOrder,
                default=[],
                metavar=param.metavar,
                help=text,
            )
        return
    shown = "" if param.shown_default is None else f" (default: {param.shown_default})"
    text = param.help + shown
    # Brackets would be right: argparse cannot wrap a usage that has them.
    metavar = f"={param.metavar}" if param.kind == "switch" else param.metavar
    parser.add_argument(flag, default=default, type=parse, metavar=metavar, help=text)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _shown(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows an ArgumentTypeError's text, not a ValueError's."""

    def wrapped(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return wrapped
