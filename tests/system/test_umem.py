"""A device with pages of its own in place of the bounce pages, on the embedded framework."""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from pathlib import Path

import pytest
from typing_extensions import override

from vduse.backends.python import IoBatch, IoRequest, PythonBackend
from vduse.testing.harness import BlkStack, blk_stack

MIB = 1 << 20
#: Less than the RLIMIT_MEMLOCK of a program that asked for nothing (8 MiB).
BOUNCE = 4 * MIB

RINGS = [pytest.param(False, id="split"), pytest.param(True, id="packed")]


def has_umem(stack: BlkStack) -> bool:
    """Whether the bounce pages are the device's."""
    domain = stack.framework.device("disk0").domain
    assert domain is not None
    return domain.has_umem


def write_and_read(stack: BlkStack) -> None:
    data = os.urandom(MIB)
    stack.disk.pwrite(data, 4096)
    assert stack.disk.pread(MIB, 4096) == data


@pytest.mark.parametrize("packed", RINGS)
def test_what_is_written_is_read_back_through_own_pages(packed: bool) -> None:
    with blk_stack(umem=True, queues=2, packed=packed, bounce_size=BOUNCE) as stack:
        assert not has_umem(stack)  # nobody has used a bounce page
        write_and_read(stack)
        assert has_umem(stack)


def test_own_pages_are_a_drivers_and_not_the_next_ones() -> None:
    with blk_stack(umem=True, bounce_size=BOUNCE) as stack:
        for _ in range(2):
            write_and_read(stack)
            assert has_umem(stack)
            stack.framework.bus.bind("disk0", "vhost_vdpa")
            assert not has_umem(stack)
            stack.framework.bus.bind("disk0", "virtio_vdpa")


def test_without_umem_the_pages_are_the_frameworks() -> None:
    with blk_stack(bounce_size=BOUNCE) as stack:
        write_and_read(stack)
        assert not has_umem(stack)


def test_too_small_a_limit_is_told_and_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (MIB, limits[1]))
    try:
        with (
            caplog.at_level(logging.WARNING),
            blk_stack(umem=True, queues=2, bounce_size=BOUNCE) as stack,
        ):
            write_and_read(stack)
            assert not has_umem(stack)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
    [line] = [line for line in caplog.messages if "bounce pages" in line]
    assert line.startswith("disk0: 4 MiB of own bounce pages refused: RLIMIT_MEMLOCK is 1 MiB")
    assert "ulimit -l" in line and "LimitMEMLOCK=" in line


def test_killed_device_takes_no_data_along(tmp_path: Path) -> None:
    """What was written is on its way in pages that go with the program."""
    image = tmp_path / "image"
    image.write_bytes(bytes(16 * MIB))
    with blk_stack(
        umem=True,
        where="child",
        bounce_size=BOUNCE,
        backend=f"file:{image}",
        layers=["delay,write=200ms"],
    ) as stack:
        data = os.urandom(MIB)
        writer = threading.Thread(target=stack.disk.pwrite, args=(data, 0))
        writer.start()
        while not has_umem(stack):  # the first write's pages, of which nobody is told
            time.sleep(0.001)
        stack.kill_device()
        stack.replace_device()
        writer.join()
        assert has_umem(stack)
        assert stack.disk.pread(MIB, 0) == data


@pytest.mark.parametrize("umem", [False, True])
def test_an_image_past_the_page_cache(tmp_path: Path, umem: bool) -> None:
    """Its pages are registered with io_uring, where the kernel lets them."""
    image = tmp_path / "image"
    image.write_bytes(bytes(16 * MIB))
    with blk_stack(
        umem=umem, backend=f"file:{image}", direct=True, queues=2, bounce_size=BOUNCE
    ) as stack:
        write_and_read(stack)
        stack.disk.pwrite(b"i" * 4096, 8192)
        stack.disk.flush()
    assert image.read_bytes()[8192 : 8192 + 4096] == b"i" * 4096


class Holding(PythonBackend):
    """Takes requests with their memory, and keeps both."""

    size = 16 * MIB

    def __init__(self) -> None:
        self.taken = threading.Event()
        self.requests: list[IoRequest] = []
        self.views: list[memoryview] = []

    @override
    def submit(self, batch: IoBatch) -> None:
        if self.taken.is_set():
            batch.complete()
            return
        for request in batch:
            self.requests.append(request)
            self.views.append(request.buffer)
        self.taken.set()


def test_reset_does_not_wait_for_a_backend_that_has_own_pages() -> None:
    """A late end finds memory that is no driver's any more."""
    disk = Holding()
    with blk_stack(umem=True, backend=disk, bounce_size=BOUNCE) as stack:

        def read() -> None:
            with pytest.raises(OSError):
                stack.disk.pread(4096, 0)

        reader = threading.Thread(target=read)
        reader.start()
        assert disk.taken.wait(60)
        assert has_umem(stack)
        stack.framework.bus.unbind("disk0")
        reader.join()
        assert not has_umem(stack)
        for view, request in zip(disk.views, disk.requests, strict=True):
            view[:] = b"\xee" * len(view)
            assert request.completed
            request.complete()  # means nothing any more
    disk.close()
