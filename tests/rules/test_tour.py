"""Every block of commands in README.md and docs/ is run, as a reader would run it.

The ``sh`` blocks of one page are one shell session, begun in the checkout; each ``python`` block
is a program of its own, run in an empty folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.tree import ROOT, files

PAGES = [*sorted(ROOT.glob("*.md")), *files(ROOT, ".md", under="docs")]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What runs this test (or all of CI) is only read by make, not run again from inside.
_ALONE = "test|check|asan|loom|fuzz|bench|soak|system-deps|clean"
_ITSELF = re.compile(rf"^make (?=(?:{_ALONE})\b)", re.M)


def blocks(page: str, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return [body for found, body in _BLOCK.findall(page) if found == language]


def session(page: str) -> str:
    """The page's ``sh`` blocks as one script."""
    return _ITSELF.sub("make -n ", "".join(blocks(page, "sh")))


def environment(home: Path) -> dict[str, str]:
    """The reader's: this interpreter's programs first, temporary files in an empty folder, and
    nothing of the ``make test ARGS=...`` that may run this."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    of_make = {"ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL"}
    kept = {name: value for name, value in os.environ.items() if name not in of_make}
    return {**kept, "PATH": path, "TMPDIR": str(home), "COLUMNS": "100"}


def run(argv: list[str], cwd: Path, home: Path) -> None:
    done = subprocess.run(argv, cwd=cwd, env=environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [p for p in PAGES if session(p.read_text())], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", session(page.read_text())], ROOT, tmp_path)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(body, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, body in enumerate(blocks(page.read_text(), "python"), 1)
    ],
)
def test_programs_of_a_page_run(program: str, tmp_path: Path) -> None:
    run([sys.executable, "-c", program], tmp_path, tmp_path)


def test_session_joins_the_blocks_of_one_language() -> None:
    page = "```sh\na\n```\ntext\n```text\nb\n```\n```sh\nmake test\nmake demo\n```\n"
    assert session(page) == "a\nmake -n test\nmake demo\n"


def test_failing_command_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run(["bash", "-euo", "pipefail", "-c", "false\ntrue\n"], tmp_path, tmp_path)
