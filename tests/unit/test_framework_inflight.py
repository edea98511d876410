"""Memory for in-flight records: the framework's own, and the driver's side's."""

from __future__ import annotations

import errno
import os

import pytest

from vduse.framework.inflight import InflightFile, sealed_memfd


def test_own_memory_is_zeroed_by_a_reset_and_keeps_its_size() -> None:
    records = InflightFile()
    fd = records.get(640, 1)
    os.pwrite(fd, b"open", 0)
    with pytest.raises(OSError):
        os.ftruncate(fd, 0)
    records.zero()
    assert os.pread(fd, 4, 0) == bytes(4)
    os.close(fd)


def test_adopted_memory_is_left_as_it_is_by_a_reset() -> None:
    records, theirs = InflightFile(), sealed_memfd(640)
    records.adopt(theirs, 640)
    fd = records.get(640, 1)
    os.pwrite(fd, b"open", 0)
    records.zero()
    assert os.pread(theirs, 4, 0) == b"open"
    assert records.size == 0
    again = records.get(640, 1)
    assert os.pread(again, 4, 0) == bytes(4)
    for each in (fd, theirs, again):
        os.close(each)


def test_what_may_shrink_or_has_another_size_is_not_adopted() -> None:
    records, plain = InflightFile(), os.memfd_create("plain")
    os.ftruncate(plain, 640)
    with pytest.raises(OSError) as refused:
        records.adopt(plain, 640)
    assert refused.value.errno == errno.EINVAL
    sealed = sealed_memfd(640)
    with pytest.raises(OSError) as refused:
        records.adopt(sealed, 4096)
    assert refused.value.errno == errno.EINVAL
    for fd in (plain, sealed):
        os.close(fd)
