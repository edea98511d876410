"""The reference and the man pages are those of the command table."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tools.manual.files import MAN, made

from tests.rules.tree import ROOT
from vduse.daemon.commands import TABLE
from vduse.daemon.table import Command, Group

_MAN_PAGES = [path for path in made() if path.startswith(MAN)]


@pytest.mark.parametrize("path", made())
def test_a_page_is_what_the_table_says(path: str) -> None:
    assert (ROOT / path).read_text() == made()[path], "`make man` writes it anew"


def test_every_command_is_in_the_reference() -> None:
    commands = [row for entry in TABLE for row in _commands(entry)]
    headings = re.findall(r"^## vduse (.*)$", made()["docs/reference.md"], re.M)
    assert headings == commands


@pytest.mark.needs("mandoc")
@pytest.mark.parametrize("path", _MAN_PAGES)
def test_mandoc_finds_nothing_wrong(path: str) -> None:
    linted = subprocess.run(
        ["mandoc", "-T", "lint", str(ROOT / path)], capture_output=True, text=True
    )
    # The table has no date.
    found = [line for line in linted.stdout.splitlines() if "missing date" not in line]
    assert found == []


@pytest.mark.needs("mandoc")
def test_a_man_page_shows_what_was_typed(tmp_path: Path) -> None:
    """Dashes and backslashes are those of the table, to be copied from the page."""
    page = shutil.copy(ROOT / MAN / "vduse-storage-daemon.1", tmp_path)
    shown = subprocess.run(
        ["mandoc", "-T", "utf8", "-O", "width=1000", page], capture_output=True, text=True
    ).stdout
    plain = re.sub(".\b", "", shown)
    assert "vduse storage-daemon --check disks.toml" in plain
    assert "--blockdev KEY=VALUE,..." in plain


def _commands(entry: Command[Any, Any] | Group) -> list[str]:
    if isinstance(entry, Group):
        return [command.name for command in entry.commands]
    return [entry.name]
