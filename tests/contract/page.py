"""docs/kernel-behaviour.md as the suite reads it."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs/kernel-behaviour.md"
_DIFFERENCES = "## Intended differences"


def _rows_of(text: str) -> list[str]:
    return re.findall(r"^\| `([a-z0-9.-]+)` \|", text, re.MULTILINE)


def contract_rows() -> list[str]:
    """The rows above the intended differences, in the page's order."""
    return _rows_of(_PAGE.read_text().split(_DIFFERENCES)[0])


def difference_rows() -> list[str]:
    """The rows of intended differences: what is otherwise, or not there at all, in Linux. Some
    name a row of the contract again."""
    return _rows_of(_PAGE.read_text().split(_DIFFERENCES)[1])
