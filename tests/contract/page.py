"""docs/kernel-behaviour.md as the suite reads it."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs/kernel-behaviour.md"
_DIFFERENCES = "## Intended differences"
_UNDER_RUN = "### Under `vduse run`"


def _rows_of(text: str) -> list[str]:
    return re.findall(r"^\| `([a-z0-9.-]+)` \|", text, re.MULTILINE)


def contract_rows() -> list[str]:
    """The rows above the intended differences, in the page's order."""
    return _rows_of(_PAGE.read_text().split(_DIFFERENCES)[0])


def difference_rows() -> list[str]:
    """The rows of intended differences: what is otherwise, or not there at all, in Linux. Some
    name a row of the contract again."""
    return _rows_of(_differences()[0])


def linux_rows_under_run() -> list[str]:
    """Those of the intended differences that are as in Linux under `vduse run`."""
    return _rows_of(_differences()[1])


def _differences() -> list[str]:
    return _PAGE.read_text().split(_DIFFERENCES)[1].split(_UNDER_RUN)
