"""Files of a checkout, without what is built in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BUILT = {".git", ".venv", ".cache", ".hypothesis", "target", "__pycache__", "node_modules"}


def files(root: Path, *suffixes: str, under: str = "") -> Iterator[Path]:
    """Every file below ``root/under`` whose name ends in one of ``suffixes`` (none: any)."""
    for folder, folders, names in os.walk(root / under):
        folders[:] = sorted(f for f in folders if f not in _BUILT and not f.endswith("_cache"))
        for name in sorted(set(names) - _BUILT):
            if not suffixes or name.endswith(suffixes):
                yield Path(folder) / name


def text(path: Path) -> str | None:
    """Contents of a text file; None for a binary one."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
