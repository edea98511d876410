"""Images with holes."""

from __future__ import annotations

import random
from pathlib import Path


def sparse(path: Path, size: int, *islands: tuple[int, int]) -> Path:
    """An image with data, none of it zero, in ``islands`` (offset and length) alone; bytes."""
    data = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in islands:
            file.seek(offset)
            file.write(data.randbytes(length).replace(b"\0", b"\1"))
    return path
