"""Values of options, from their text. ValueError says to the person what is wrong."""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable

from vduse.control.spelling import did_you_mean
from vduse.control.units import parse_duration, parse_number

#: The drivers of a vDPA bus, the kernel's and ours.
DRIVERS = ("virtio_vdpa", "vhost_vdpa")
#: (uid_t)-1, which chown(2) takes for "leave it".
_NO_ID = (1 << 32) - 1
#: CPUs that a Linux can be built for.
_MOST_CPUS = 8192


def path(text: str) -> str:
    """Of a file, as it is."""
    if not text:
        raise ValueError("'' is no path")
    return text


def whole(low: int, high: int) -> Callable[[str], int]:
    """From ``low`` to ``high``."""

    def parse(text: str) -> int:
        if (number := parse_number(text)) is None or not low <= number <= high:
            raise ValueError(f"'{text}' is not a whole number from {low} to {high}")
        return number

    return parse


def power_of_two(low: int, high: int) -> Callable[[str], int]:
    """From ``low`` to ``high``."""

    def parse(text: str) -> int:
        number = parse_number(text)
        if number is None or not low <= number <= high or number & (number - 1):
            raise ValueError(f"'{text}' is not a power of two from {low} to {high}")
        return number

    return parse


def one_of(*words: str) -> Callable[[str], str]:
    """One of these, as it is."""

    def parse(text: str) -> str:
        if text not in words:
            known = ", ".join(words)
            raise ValueError(f"'{text}' is none of {known}{did_you_mean(text, words)}")
        return text

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    """From ``low`` to ``high``, in decimals or as a time with a unit."""

    def parse(text: str) -> float:
        try:
            found = parse_duration(text if text.rstrip()[-1:].isalpha() else f"{text}s")
        except ValueError:
            found = -1.0
        if not low <= found <= high:
            raise ValueError(f"'{text}' is not a time from {low:g} to {high:g} seconds")
        return found

    return parse


def mode(text: str) -> int:
    """A file mode, octal."""
    try:
        number = int(text, 8)
    except ValueError:
        number = -1
    if not 0 <= number <= 0o777:
        raise ValueError(f"'{text}' is not a file mode: use 0600 to 0777, for example 0660")
    return number


def user(text: str) -> int:
    """A user's id, from its name or the number itself."""
    return _id(text, lambda name: pwd.getpwnam(name).pw_uid, "user")


def group(text: str) -> int:
    """A group's id, the same way."""
    return _id(text, lambda name: grp.getgrnam(name).gr_gid, "group")


def _id(text: str, find: Callable[[str], int], what: str) -> int:
    # A name of digits only is a number, as chown(1) has it where there is no such name.
    if text.isascii() and text.isdecimal() and int(text) < _NO_ID:
        return int(text)
    try:
        return find(text)
    except (KeyError, ValueError):
        raise ValueError(f"'{text}' is no {what} here: name one, or its number") from None


def cpu_list(text: str) -> tuple[int, ...]:
    """Numbers of CPUs and ranges of them, as the kernel lists them; in order, none twice."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = parse_number(first), parse_number(last if dash else first)
        if low is None or high is None or not low <= high < _MOST_CPUS:
            raise ValueError(f"'{text}' is not a list of CPUs, for example 0,2-3")
        found.extend(range(low, high + 1))
    if len(set(found)) < len(found):
        raise ValueError(f"'{text}' names a CPU twice")
    return tuple(found)


def number(text: str) -> int:
    """Decimal, or hexadecimal after 0x."""
    try:
        found = int(text, 0)
    except ValueError:
        found = -1
    if not 0 <= found < 1 << 64:
        raise ValueError(f"'{text}' is not a number of 64 bits, for example 0x300000000")
    return found


def mac_address(text: str) -> str:
    """Six bytes."""
    if re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text) is None:
        raise ValueError(f"'{text}' is not a MAC address, for example 52:54:00:12:34:56")
    return text
