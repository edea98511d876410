"""The reference as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from tools.manual.commands import Page
from tools.manual.keys import Keys

_HEAD = """# Reference
Every command and option of `vduse`, and every key of the storage daemon's options. `make man` makes
this page and the man pages from the command table; a test compares them. `vduse COMMAND --help`
prints the same.

Exit codes: 0, 1 for what a command found or for a fault of ours, 2 for a mistake of the person's,
128 + N after signal N."""


def reference(pages: Iterable[Page], tables: Iterable[Keys]) -> str:
    """docs/reference.md."""
    parts = [_HEAD, *map(_command, pages)]
    parts.append(
        "## Keys of the storage daemon\n"
        "Values of `--object`, `--blockdev` and so on: `KEY=VALUE,...`, or a table of the TOML "
        "file.\nNODE is a node's name, or a node that is defined within, with dots: "
        "`file.driver=file`.\n[storage-daemon.md](storage-daemon.md) says what they do."
    )
    parts += map(_keys, tables)
    return "\n\n".join(parts) + "\n"


def _command(page: Page) -> str:
    options = _table(("", ""), [(f"`{entry.term}`", _cell(entry.text)) for entry in page.entries])
    examples = "\n".join(f"- {what}:\n  `{line}`" for line, what in page.examples)
    return (
        f"## {page.name}\n{page.summary}.\n\n```text\n{page.synopsis}\n```\n\n"
        f"{page.description}\n\n{options}\n\nExamples:\n\n{examples}"
    )


def _keys(table: Keys) -> str:
    rows = [(f"`{key.name}`", f"`{_cell(key.value)}`", key.note) for key in table.keys]
    return f"### {table.title}\n\n{_table(('key', 'value', 'default'), rows)}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
