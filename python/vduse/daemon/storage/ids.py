"""What things may be called."""

from __future__ import annotations

import re

_ID = re.compile("[A-Za-z][A-Za-z0-9._-]*")


def is_id(name: str) -> bool:
    """QEMU's id_wellformed."""
    return _ID.fullmatch(name) is not None
