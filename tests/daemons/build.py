"""Makes programs of the daemons here. Tests that use them need ``cc``."""

from __future__ import annotations

import subprocess
from pathlib import Path

_HERE = Path(__file__).parent


def build_tiny_blk(folder: Path) -> Path:
    """Compiles tiny_blk.c, statically linked; the program."""
    program = folder / "tiny_blk"
    source = _HERE / "tiny_blk.c"
    subprocess.run(
        ["cc", "-static", "-O2", "-Wall", "-Wextra", "-o", program, source],
        check=True,
    )
    return program
