"""Times for people to read."""

from __future__ import annotations

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def span(seconds: float) -> str:
    """In one or two units: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = int(seconds)
    for at, (size, unit) in enumerate(_UNITS):
        if whole >= size:
            smaller, name = _UNITS[at + 1] if at + 1 < len(_UNITS) else (1, "s")
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"


def latency(nanoseconds: float) -> str:
    """Three digits: 950 ns, 12.3 us, 4.56 ms, 1.20 s."""
    for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if nanoseconds >= size:
            return f"{nanoseconds / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{nanoseconds:.0f} ns"
