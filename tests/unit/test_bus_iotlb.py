"""IOTLB of shared files, against a model."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vduse.bus.iotlb import Iotlb, Mapping, SharedFile


@pytest.fixture(scope="module")
def file() -> Iterator[SharedFile]:
    fd = os.memfd_create("test")
    yield SharedFile(fd)
    os.close(fd)


RANGE = st.tuples(st.integers(0, 40), st.integers(0, 10)).map(lambda r: (r[0], r[0] + r[1]))


@given(st.lists(st.tuples(st.booleans(), RANGE), max_size=40), RANGE)
def test_first_is_the_lowest_overlap(
    file: SharedFile, steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    iotlb, model = Iotlb(), list[tuple[int, int]]()

    def overlaps(start: int, last: int) -> list[tuple[int, int]]:
        return [each for each in sorted(model) if each[0] <= last and start <= each[1]]

    for add, (start, last) in steps:
        if not add:
            iotlb.remove(start, last)
            for each in overlaps(start, last):
                model.remove(each)
        elif overlaps(start, last):
            with pytest.raises(OSError) as caught:
                iotlb.add(Mapping(start, last, file, 0, 3))
            assert caught.value.errno == errno.EEXIST
        else:
            iotlb.add(Mapping(start, last, file, 0, 3))
            model.append((start, last))
    assert [(mapping.start, mapping.last) for mapping in iotlb] == sorted(model)
    found = iotlb.first(*asked)
    expected = overlaps(*asked)
    assert (found and (found.start, found.last)) == (expected[0] if expected else None)


def test_the_fd_is_closed_with_its_last_mapping() -> None:
    read_end, write_end = os.pipe()
    iotlb = Iotlb()
    iotlb.add(Mapping(0, 9, SharedFile(write_end), 0, 3))
    os.close(write_end)
    os.set_blocking(read_end, False)
    with pytest.raises(BlockingIOError):
        os.read(read_end, 1)
    iotlb.remove(0, 0)
    assert os.read(read_end, 1) == b""
    os.close(read_end)
