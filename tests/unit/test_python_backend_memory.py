"""A Python disk's view of the driver's memory: scattered buffers, resets, a model."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer, override

from tests.unit.test_python_backend import Batches, Ram, on
from tests.waiting import eventually
from vduse.backends.python import IoBatch, IoRequest, PythonBackend
from vduse.testing.harness import BlkStack
from vduse.testing.rawdriver import FREE, S_IOERR, S_OK, T_IN, T_OUT, RawDriver, header
from vduse.testing.rings import WRITE

DATA = FREE + 0x1000
STATUS = FREE + 0x8000


@contextmanager
def raw(backend: PythonBackend) -> Iterator[tuple[BlkStack, RawDriver]]:
    with on(backend, driver="vhost_vdpa") as stack, RawDriver(stack.driver) as driver:
        assert driver.start()
        yield stack, driver


def scattered(driver: RawDriver, kind: int, pieces: list[tuple[int, int]]) -> None:
    """A request at sector 1 whose data lies in ``pieces``: offset from DATA, bytes."""
    driver.memory.write(FREE, header(kind, 1))
    driver.memory.write(STATUS, b"\xff")
    flags = WRITE if kind == T_IN else 0
    data = [(driver.at(DATA + offset), length, flags) for offset, length in pieces]
    driver.submit([(driver.at(FREE), 16, 0), *data, (driver.at(STATUS), 1, WRITE)])
    driver.kick()


PIECES = [(0, 100), (4096, 512), (200, 412)]


def test_scattered_write_is_one_buffer() -> None:
    ram = Ram()
    with raw(ram) as (_, driver):
        content = bytes(range(256)) * 4
        at = 0
        for offset, length in PIECES:
            driver.memory.write(DATA + offset, content[at : at + length])
            at += length
        scattered(driver, T_OUT, PIECES)
        driver.wait_used(1)
        assert driver.memory.read(STATUS, 1) == bytes([S_OK])
        assert ram.data[512:1536] == content


def test_scattered_read_is_copied_out_at_completion() -> None:
    def handle(batch: IoBatch) -> None:
        for request in batch:
            view = request.buffer
            assert len(view) == 1024 and view.contiguous
            view[:] = bytes(range(256)) * 4
            assert driver.memory.read(DATA, 100) == b"\xee" * 100, "not before"
            request.complete()

    disk = Batches(handle)
    with raw(disk) as (_, driver):
        driver.memory.write(DATA, b"\xee" * 8192)
        scattered(driver, T_IN, PIECES)
        driver.wait_used(1)
        read = b"".join(driver.memory.read(DATA + offset, length) for offset, length in PIECES)
        assert read == bytes(range(256)) * 4
        assert driver.memory.read(DATA + 100, 100) == b"\xee" * 100
    assert disk.stats()["exceptions"] == 0


def test_failed_scattered_read_is_not_copied_out() -> None:
    def handle(batch: IoBatch) -> None:
        for request in batch:
            request.buffer[:] = bytes(1024)
            request.complete(errno.EIO)

    with raw(Batches(handle)) as (_, driver):
        driver.memory.write(DATA, b"\xee" * 8192)
        scattered(driver, T_IN, PIECES)
        driver.wait_used(1)
        assert driver.memory.read(DATA, 8192) == b"\xee" * 8192


def test_neighbours_in_memory_are_not_copied() -> None:
    def handle(batch: IoBatch) -> None:
        for request in batch:
            request.buffer[:100] = b"a" * 100
            assert driver.memory.read(DATA, 100) == b"a" * 100
            request.complete()

    disk = Batches(handle)
    with raw(disk) as (_, driver):
        scattered(driver, T_IN, [(0, 100), (100, 300), (400, 624)])
        driver.wait_used(1)
    assert disk.stats()["exceptions"] == 0


class Slicing(Ram):
    """Keeps a part of every odd sector's buffer, and what exports the fourth's."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go = threading.Event()
        self.parts: dict[int, memoryview] = {}
        self.exporter: Buffer = b""

    @override
    def write(self, offset: int, buffer: memoryview) -> None:
        sector = offset // 512
        if sector == 0:
            self.begun.set()
            assert self.go.wait(60)
        part = buffer[8:]
        if sector == 5:
            raise OSError(errno.EIO, "with a part of the buffer in the traceback")
        if sector % 2:
            self.parts[sector] = part
        elif sector == 4:
            self.exporter = buffer.obj


def test_part_kept_by_a_method_stays_on_its_own_request() -> None:
    disk = Slicing()
    with raw(disk) as (_, driver):
        for sector in range(8):
            data, status = DATA + 512 * sector, STATUS + sector
            driver.memory.write(FREE + 16 * sector, header(T_OUT, sector))
            driver.memory.write(data, bytes([sector]) * 512)
            parts = [(FREE + 16 * sector, 16, 0), (data, 512, 0), (status, 1, WRITE)]
            chain = [(driver.at(at), length, flags) for at, length, flags in parts]
            driver.submit(chain, indirect=True)
            driver.kick()
            # The first is a batch; the others come while it is served, and are the next.
            assert disk.begun.wait(60)
        disk.go.set()
        driver.wait_used(8)
        assert driver.memory.read(STATUS, 8) == bytes([S_OK] * 5 + [S_IOERR] + [S_OK] * 2)
        # The memory is the driver's again: each part shows what it writes to that request's place.
        for sector in range(8):
            driver.memory.write(DATA + 512 * sector, bytes([100 + sector]) * 512)
        exported = memoryview(disk.exporter)
        shown = {sector: bytes(part) for sector, part in disk.parts.items()}
        assert shown == {sector: bytes([100 + sector]) * 504 for sector in (1, 3, 7)}
        assert bytes(exported) == bytes([104]) * 512
        assert disk.stats()["stale_views"] == 4
        assert disk.stats()["exceptions"] == 0
        assert disk.stats()["batches"] == 2


class Holding(Batches):
    """Keeps what it is given, with or without a view."""

    def __init__(self, view: bool) -> None:
        super().__init__(self._hold)
        self.view = view
        self.taken = threading.Event()
        self.requests: list[IoRequest] = []
        self.views: list[memoryview] = []

    def _hold(self, batch: IoBatch) -> None:
        self.requests += batch
        if self.view:
            self.views += [request.buffer for request in self.requests]
        self.taken.set()


@pytest.mark.parametrize("pieces", [[(0, 1024)], PIECES])
def test_reset_writes_nothing_later(pieces: list[tuple[int, int]]) -> None:
    disk = Holding(view=len(pieces) > 1)
    with raw(disk) as (_, driver):
        driver.memory.write(DATA, b"\xee" * 8192)
        scattered(driver, T_IN, pieces)
        assert disk.taken.wait(60)
        driver.reset()
        for view in disk.views:
            view[:] = bytes(len(view))
        for request in disk.requests:
            assert request.completed
            request.complete()  # means nothing any more
            with pytest.raises(ValueError):
                memoryview(request.buffer)
        assert driver.memory.read(DATA, 8192) == b"\xee" * 8192
        assert driver.memory.read(STATUS, 1) == b"\xff"
    assert disk.stats()["exceptions"] == disk.stats()["dropped"] == 0


@pytest.mark.parametrize("end", ["completed", "released"])
def test_reset_waits_for_a_view_on_the_drivers_memory(end: str) -> None:
    disk = Holding(view=True)
    with raw(disk) as (_, driver):
        scattered(driver, T_IN, [(0, 1024)])
        assert disk.taken.wait(60)
        over = threading.Event()

        def reset() -> None:
            driver.reset()
            over.set()

        thread = threading.Thread(target=reset)
        thread.start()
        eventually(lambda: disk.requests[0].completed, "the reset cancels the request")
        assert not over.wait(0.1)
        if end == "completed":
            disk.requests[0].complete()
        else:
            disk.views[0].release()
        assert over.wait(60)
        thread.join()
        assert driver.memory.read(STATUS, 1) == b"\xff"


def test_device_goes_on_after_a_reset() -> None:
    disk = Holding(view=False)
    with raw(disk) as (stack, driver):
        scattered(driver, T_IN, [(0, 1024)])
        assert disk.taken.wait(60)
        driver.reset()
        disk.handle = lambda batch: batch.complete() and None
        with RawDriver(stack.driver) as next_driver:
            assert next_driver.start()
            scattered(next_driver, T_IN, [(0, 1024)])
            next_driver.wait_used(1)


SECTORS = 64
ranges = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 8)).filter(
    lambda r: r[0] + r[1] <= SECTORS
)
operations = st.lists(
    st.tuples(st.sampled_from(["read", "write", "write_zeroes"]), ranges, st.binary(max_size=1)),
    max_size=30,
)


@given(operations)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ram_disk_is_a_bytearray(steps: list[tuple[str, tuple[int, int], bytes]]) -> None:
    model = bytearray(SECTORS * 512)
    with on(Ram(SECTORS * 512)) as stack:
        for op, (sector, count), byte in steps:
            offset, length = sector * 512, count * 512
            if op == "read":
                assert stack.disk.pread(length, offset) == model[offset : offset + length]
            elif op == "write":
                data = (byte or b"\x01") * length
                stack.disk.pwrite(data, offset)
                model[offset : offset + length] = data
            else:
                stack.disk.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
        assert stack.disk.pread(len(model), 0) == model


@pytest.mark.parametrize("kind", [T_IN, T_OUT])
def test_request_without_bytes_has_an_empty_buffer_or_is_refused(kind: int) -> None:
    disk = Ram()
    with raw(disk) as (_, driver):
        scattered(driver, kind, [])
        driver.wait_used(1)
        assert driver.memory.read(STATUS, 1) != b"\xff"
        scattered(driver, kind, [(0, 512)])
        driver.wait_used(1)
        assert driver.memory.read(STATUS, 1) == bytes([S_OK])
        assert disk.stats()["exceptions"] == 0
