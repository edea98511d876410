"""Sizes, times and shares as people write and read them. Units of size are of 1024."""

from __future__ import annotations

import re

_UNITS = ("", "k", "M", "G", "T")
_NUMBER = re.compile("[0-9]{1,20}")
_SIZE = re.compile(rf"({_NUMBER.pattern})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(ns|us|ms|s|m)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_SHARE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(%?)")
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


def parse_duration(text: str) -> float:
    """Seconds. ValueError names the rule."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"'{text}' is not a time: use ns, us, ms, s or m, for example 10ms or 0.5s"
        )
    return float(match[1]) * _SECONDS[match[2]]


def parse_share(text: str) -> float:
    """A part of the whole, from 0 to 1. ValueError names the rule."""
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / (100 if match[2] else 1) if match else 2.0
    if share > 1:
        raise ValueError(
            f"'{text}' is not a share: use 0 to 1 or 0% to 100%, for example 0.1 or 10%"
        )
    return share


def format_size(size: int) -> str:
    """The shortest exact-looking form: ``512 B``, ``4 KiB``, ``1.5 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + " TiB"
