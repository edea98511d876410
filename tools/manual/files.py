"""Which pages there are, and where they lie."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from tools.manual import markdown, roff
from tools.manual.commands import pages
from tools.manual.keys import tables

ROOT = Path(__file__).parents[2]
#: What the wheel puts below the environment's folder (pyproject.toml, tool.maturin.data).
MAN = "packaging/wheel/data/share/man/man1"
_APART = "vduse storage-daemon"


def made() -> dict[str, str]:
    """Pages by their paths in the checkout."""
    commands, keys = list(pages()), list(tables())
    [daemon] = [page for page in commands if page.name == _APART]
    version = importlib.metadata.version("vduse")
    return {
        "docs/reference.md": markdown.reference(commands, keys),
        f"{MAN}/vduse.1": roff.overview(commands, daemon, version),
        f"{MAN}/vduse-storage-daemon.1": roff.command(daemon, keys, version),
    }
