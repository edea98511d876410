"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vduse.control.units import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("4k", 4096),
        ("4K", 4096),
        ("4KiB", 4096),
        ("4kb", 4096),
        ("512 B", 512),
        ("1M", 1 << 20),
        ("1G", 1 << 30),
        (" 3T ", 3 << 40),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "1X", "-1", "1.5G", "1 G 2", "0x10", "1Gi B", "\u0661"])
def test_parse_size_refuses_and_names_the_rule(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_size(text)
    assert str(error.value) == (
        f"'{text}' is not a size: use a whole number of bytes, or of k, M, G, T (1k = 1024), "
        "for example 512, 4k or 1G"
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (5 << 40, "5 TiB")],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1023), st.sampled_from([("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30)]))
def test_whole_sizes_come_back(count: int, unit: tuple[str, int]) -> None:
    assert parse_size(format_size(count << unit[1])) == count << unit[1]
