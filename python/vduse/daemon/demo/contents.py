"""The files that go through the disk: some made here, some real (this program's own)."""

from __future__ import annotations

import random
from pathlib import Path

import vduse

_LARGEST = 16 << 20
_TOTAL = 24 << 20


def files() -> dict[str, bytes]:
    """Contents by path (folders separated by ``/``), the same at every call."""
    made = {
        "made/empty": b"",
        "made/one-byte": b"\xa5",
        "made/sector.bin": bytes(range(256)) * 2,
        "made/zeroes.bin": bytes(1 << 20),
        "made/random.bin": random.Random(1).randbytes((3 << 20) + 17),
        "made/lines.txt": "".join(f"line {n}\n" for n in range(20000)).encode(),
    }
    return made | _own_files(_TOTAL - sum(map(len, made.values())))


def _own_files(budget: int) -> dict[str, bytes]:
    root = Path(vduse.__file__).parent
    found: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        if "__pycache__" in path.parts or not path.is_file():
            continue
        size = path.stat().st_size
        if size <= min(_LARGEST, budget):
            found[f"vduse/{path.relative_to(root)}"] = path.read_bytes()
            budget -= size
    return found
