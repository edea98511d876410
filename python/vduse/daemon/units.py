"""Sizes as people write and read them. Units are of 1024."""

from __future__ import annotations

import re

_UNITS = ("", "k", "M", "G", "T")
_NUMBER = re.compile("[0-9]{1,20}")
_SIZE = re.compile(rf"({_NUMBER.pattern})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
#: The rule, as error messages quote it.
RULE = "a whole number of bytes, or of k, M, G, T (1k = 1024), for example 512, 4k or 1G"


def parse_number(text: str) -> int | None:
    """A whole number of at most 20 digits; None for anything else."""
    return int(text) if _NUMBER.fullmatch(text) else None


def parse_size(text: str) -> int:
    """Bytes. ValueError names the rule."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size: use {RULE}")
    exponent = [unit.lower() for unit in _UNITS].index(match[2].lower())
    return int(match[1]) << (10 * exponent)


def format_size(size: int) -> str:
    """The shortest exact-looking form: ``512 B``, ``4 KiB``, ``1.5 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + " TiB"
