"""Disks written in Python: what a handler gets, and how its requests end."""

from __future__ import annotations

import asyncio
import errno
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typing_extensions import override

from vduse.backends.python import IoBatch, IoRequest, PythonBackend
from vduse.bus import virtio_blk
from vduse.testing.harness import BlkStack, blk_stack

SIZE = 1 << 20
LOG = "vduse.backends.python"


class Ram(PythonBackend):
    """A RAM disk by methods."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.data = bytearray(size)
        self.calls: list[tuple[object, ...]] = []

    @override
    def read(self, offset: int, buffer: memoryview) -> Awaitable[None] | None:
        buffer[:] = self.data[offset : offset + len(buffer)]
        return None

    @override
    def write(self, offset: int, buffer: memoryview) -> Awaitable[None] | None:
        self.data[offset : offset + len(buffer)] = buffer
        return None

    @override
    def flush(self) -> None:
        self.calls.append(("flush",))

    @override
    def discard(self, offset: int, length: int) -> None:
        self.calls.append(("discard", offset, length))


class Batches(PythonBackend):
    """Whole batches go to a function."""

    size = SIZE

    def __init__(self, handle: Callable[[IoBatch], None]) -> None:
        self.handle = handle

    @override
    def submit(self, batch: IoBatch) -> None:
        if all(request.op == "flush" for request in batch):
            batch.complete()  # the device's own, when it is closed
        else:
            self.handle(batch)


@contextmanager
def on(backend: PythonBackend, **options: Any) -> Iterator[BlkStack]:
    """A stack on ``backend``, which is closed with it."""
    try:
        with blk_stack(backend=backend, **options) as stack:
            yield stack
    finally:
        backend.close()


def failure(call: Callable[[], object]) -> int | None:
    """The errno that a call fails with."""
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


# --- a method an operation ---------------------------------------------------------------------


def test_methods_store_and_give_back() -> None:
    with on(Ram()) as stack:
        stack.disk.pwrite(b"a" * 1024, 512)
        assert stack.disk.pread(2048, 0) == bytes(512) + b"a" * 1024 + bytes(512)


def test_operations_call_their_methods() -> None:
    ram = Ram()
    with on(ram) as stack:
        stack.disk.flush()
        stack.disk.discard(4096, 8192)
    assert ram.calls[:2] == [("flush",), ("discard", 4096, 8192)]


def test_write_zeroes_goes_through_write() -> None:
    with on(Ram(4 << 20)) as stack:
        stack.disk.pwrite(b"x" * (3 << 20), 512)
        stack.disk.write_zeroes(1024, 2 << 20)
        expected = bytes(512) + b"x" * 512 + bytes(2 << 20) + b"x" * ((1 << 20) - 512)
        assert stack.disk.pread(len(expected), 0) == expected


def test_write_zeroes_of_its_own_is_told_whether_it_may_unmap() -> None:
    class Zeroes(Ram):
        @override
        def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
            self.calls.append((offset, length, unmap))

    disk = Zeroes()
    with on(disk) as stack:
        stack.disk.write_zeroes(512, 1024)
        stack.disk.write_zeroes(512, 1024, unmap=True)
    assert disk.calls[:2] == [(512, 1024, False), (512, 1024, True)]


def test_data_to_be_written_is_read_only_and_what_is_read_is_writable() -> None:
    seen: dict[str, bool] = {}

    class Look(Ram):
        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            seen["read"] = buffer.readonly

        @override
        def write(self, offset: int, buffer: memoryview) -> None:
            seen["write"] = buffer.readonly

    with on(Look()) as stack:
        stack.disk.pread(512, 0)
        stack.disk.pwrite(bytes(512), 0)
    assert seen == {"read": False, "write": True}


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (errno.ENOSPC, errno.EIO),
        (errno.EIO, errno.EIO),
        # VIRTIO_BLK_S_UNSUPP
        (errno.ENOTSUP, errno.EOPNOTSUPP),
    ],
)
def test_oserror_of_a_method_is_the_requests_alone(
    raised: int, seen: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Ram):
        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            if offset == 512:
                raise OSError(raised, "no")

    with on(Failing()) as stack:
        assert failure(lambda: stack.disk.pread(512, 512)) == seen
        stack.disk.pread(512, 0)
    assert [record for record in caplog.records if record.name == LOG] == []


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt, OSError])
def test_exception_of_a_method_is_eio_and_a_line_in_the_log(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Ram):
        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            if offset == 512:
                raise kind
            super().read(offset, buffer)

    disk = Failing()
    with on(disk) as stack:
        assert failure(lambda: stack.disk.pread(512, 512)) == errno.EIO
        assert stack.disk.pread(512, 0) == bytes(512)
        assert disk.stats()["exceptions"] == 1
        assert disk.stats()["stale_views"] == 0
    [record] = [record for record in caplog.records if record.name == LOG]
    words = record.getMessage()
    assert words.startswith("Failing: read of 512 bytes at 512 raised; the request fails\n")
    assert kind.__name__ in words and "raise kind" in words


def test_exceptions_of_one_batch_are_two_lines_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Ram):
        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            if offset:
                raise ValueError(offset)

    disk = Failing()
    with on(disk) as stack:
        buffers = [bytearray(512) for _ in range(8)]
        tokens = stack.disk.submit([("read", 512 * n, b) for n, b in enumerate(buffers)])
        done: dict[int, int] = {}
        while len(done) < 8:
            done.update(stack.disk.reap())
        assert [done[token] for token in tokens] == [512] + [-errno.EIO] * 7
        assert disk.stats()["exceptions"] == 7
    lines = [record for record in caplog.records if record.name == LOG]
    assert len(lines) <= 2 * disk.stats()["batches"]


def test_missing_method_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Half(PythonBackend):
        size = SIZE

        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            pass

    with on(Half()) as stack:
        assert failure(lambda: stack.disk.pwrite(bytes(512), 0)) == errno.EIO
    assert "Half has no method write" in caplog.text


# --- attributes --------------------------------------------------------------------------------


def test_attributes_are_the_disks() -> None:
    class Odd(Ram):
        block_size = 4096
        read_only = True

    native = Odd().native
    assert (native.size, native.block_size, native.read_only) == (SIZE, 4096, True)
    assert (native.can_discard, native.engine) == (False, "python")
    assert Ram().native.can_discard
    assert not Batches(lambda batch: None).native.can_discard


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 0), ("size", 511), ("block_size", 256), ("block_size", 1000), ("size", "1G")],
)
def test_attribute_out_of_range_is_refused(name: str, value: object) -> None:
    ram = Ram()
    setattr(ram, name, value)
    with pytest.raises((ValueError, OSError, TypeError)):
        _ = ram.native


def test_disk_that_cannot_be_read_is_refused() -> None:
    class Nothing(PythonBackend):
        size = SIZE

    with pytest.raises(TypeError, match="Nothing has neither a method read nor a method submit"):
        _ = Nothing().native


def test_submit_that_is_a_coroutine_is_refused() -> None:
    class Coroutine(PythonBackend):
        size = SIZE

        async def submit(self, batch: IoBatch) -> None:  # type: ignore[override]  # refused
            batch.complete()

    with pytest.raises(TypeError, match="cannot be async def"):
        _ = Coroutine().native


@pytest.mark.parametrize("result", [b"x" * 512, 512], ids=["bytes", "int"])
def test_result_of_a_method_fails_its_request(
    result: object, caplog: pytest.LogCaptureFixture
) -> None:
    class Returns(Ram):
        @override
        def read(self, offset: int, buffer: memoryview) -> Any:
            return result

    with on(Returns()) as stack:
        assert failure(lambda: stack.disk.pread(512, 0)) == errno.EIO
    assert f"returned {type(result).__name__}, not None" in caplog.text


def test_resize_reaches_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    resized = threading.Event()
    monkeypatch.setattr(virtio_blk.log, "info", lambda *_: resized.set())
    ram = Ram()
    with on(ram) as stack:
        ram.data.extend(bytes(SIZE))
        ram.resize(2 * SIZE)
        assert resized.wait(60)
        assert stack.disk.size == 2 * SIZE
        stack.disk.pwrite(b"n" * 512, 2 * SIZE - 512)
    assert ram.data[-512:] == b"n" * 512


def test_read_only_disk_refuses_writes() -> None:
    class ReadOnly(Ram):
        read_only = True

    with on(ReadOnly()) as stack:
        assert stack.disk.read_only
        assert failure(lambda: stack.disk.pwrite(bytes(512), 0)) == errno.EROFS


# --- batches -----------------------------------------------------------------------------------


def test_batch_is_a_sequence_of_requests() -> None:
    seen: list[tuple[object, ...]] = []

    def handle(batch: IoBatch) -> None:
        seen.extend((r.op, r.offset, r.length, r.may_unmap, r.completed) for r in batch)
        assert (batch[-1].offset, len(batch)) == (batch[len(batch) - 1].offset, len([*batch]))
        with pytest.raises(IndexError):
            batch[len(batch)]
        assert batch.open == len(batch) == batch.complete()
        assert all(request.completed for request in batch)

    with on(Batches(handle)) as stack:
        stack.disk.pread(1024, 512)
        stack.disk.pwrite(bytes(512), 4096)
        stack.disk.write_zeroes(0, 2048)
    assert seen == [
        ("read", 512, 1024, False, False),
        ("write", 4096, 512, False, False),
        ("write_zeroes", 0, 2048, False, False),
    ]


def test_request_fails_with_the_errno_it_is_completed_with() -> None:
    with on(Batches(lambda batch: batch[0].complete(errno.ENOTSUP))) as stack:
        assert failure(lambda: stack.disk.pread(512, 0)) == errno.EOPNOTSUPP


@pytest.mark.parametrize("error", [-1, 4096, 1 << 30])
def test_error_that_is_no_errno_is_refused(error: int) -> None:
    def handle(batch: IoBatch) -> None:
        with pytest.raises(ValueError, match="neither 0 nor an errno"):
            batch[0].complete(error)
        batch.complete()

    disk = Batches(handle)
    with on(disk) as stack:
        stack.disk.pread(512, 0)
    assert disk.stats()["exceptions"] == 0


def test_completing_twice_is_refused() -> None:
    def handle(batch: IoBatch) -> None:
        batch[0].complete()
        with pytest.raises(ValueError, match="completed already"):
            batch[0].complete()
        assert batch.complete() == 0

    disk = Batches(handle)
    with on(disk) as stack:
        stack.disk.pread(512, 0)
    assert disk.stats()["exceptions"] == 0


def test_exception_fails_what_is_not_completed(caplog: pytest.LogCaptureFixture) -> None:
    def handle(batch: IoBatch) -> None:
        for request in batch:
            if request.offset == 0:
                request.complete()
        raise RuntimeError("handler")

    disk = Batches(handle)
    with on(disk) as stack:
        tokens = stack.disk.submit([("read", 512 * n, bytearray(512)) for n in range(4)])
        done: dict[int, int] = {}
        while len(done) < 4:
            done.update(stack.disk.reap())
        assert [done[token] for token in tokens] == [512] + [-errno.EIO] * 3
    assert "RuntimeError: handler" in caplog.text
    assert disk.stats()["dropped"] == 0


def test_requests_are_completed_by_another_thread() -> None:
    work: queue.Queue[IoRequest | None] = queue.Queue()

    def serve() -> None:
        while (request := work.get()) is not None:
            request.buffer[:] = bytes([request.offset // 512]) * request.length
            request.complete()

    thread = threading.Thread(target=serve)
    thread.start()
    with on(Batches(lambda batch: [work.put(request) for request in batch][:0] and None)) as stack:
        buffers = [bytearray(512) for _ in range(64)]
        stack.disk.submit([("read", 512 * n, buffer) for n, buffer in enumerate(buffers)])
        done = 0
        while done < 64:
            done += len(stack.disk.reap())
        assert [buffer[0] for buffer in buffers] == [*range(64)]
    work.put(None)
    thread.join()


def test_dropped_request_fails_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    disk = Batches(lambda batch: None)
    with on(disk) as stack:
        assert failure(lambda: stack.disk.pread(512, 0)) == errno.EIO
        assert disk.stats()["dropped"] == 1
    assert "dropped without being completed" in caplog.text


def test_request_kept_alone_is_open_until_it_is_dropped() -> None:
    kept: list[IoRequest] = []
    taken = threading.Event()

    def handle(batch: IoBatch) -> None:
        kept.extend(batch)
        taken.set()

    disk = Batches(handle)
    with on(disk) as stack:
        [token] = stack.disk.submit([("read", 0, bytearray(512))])
        assert taken.wait(60)
        assert stack.disk.reap(1, 0.05) == []
        kept.clear()
        assert stack.disk.reap(1, 60) == [(token, -errno.EIO)]


# --- views -------------------------------------------------------------------------------------


def test_view_is_released_at_completion() -> None:
    kept: list[memoryview] = []

    def handle(batch: IoBatch) -> None:
        for request in batch:
            kept.append(request.buffer)
            assert request.buffer is request.buffer
            request.complete()
            with pytest.raises(ValueError):
                _ = request.buffer

    disk = Batches(handle)
    with on(disk) as stack:
        stack.disk.pread(512, 0)
        assert disk.stats()["exceptions"] == disk.stats()["stale_views"] == 0
    with pytest.raises(ValueError, match="released"):
        kept[0][0]


def test_view_kept_by_a_method_is_released() -> None:
    kept: list[memoryview] = []

    class Keeping(Ram):
        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            kept.append(buffer)

    disk = Keeping()
    with on(disk) as stack:
        stack.disk.pread(512, 0)
    with pytest.raises(ValueError, match="released"):
        kept[0][0]
    assert disk.stats()["stale_views"] == 0


def test_stale_view_keeps_its_memory_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    kept: list[memoryview] = []

    def handle(batch: IoBatch) -> None:
        for request in batch:
            kept.append(request.buffer[1:])
        batch.complete()

    disk = Batches(handle)
    with on(disk) as stack:
        for _ in range(3):
            stack.disk.pread(512, 0)
        assert disk.stats()["stale_views"] == 3
    lines = [record for record in caplog.records if "still in use" in record.getMessage()]
    assert len(lines) == 1
    # The device and its memory are gone; the view is not.
    assert [len(bytes(view)) for view in kept] == [511] * 3


def test_request_without_data_has_no_buffer() -> None:
    def handle(batch: IoBatch) -> None:
        with pytest.raises(ValueError, match="no data"):
            _ = batch[0].buffer
        batch.complete()

    disk = Batches(handle)
    with on(disk) as stack:
        stack.disk.write_zeroes(0, 512)
    assert disk.stats()["exceptions"] == 0


# --- async -------------------------------------------------------------------------------------


class Slow(Ram):
    """Waits before it answers, later ones less."""

    @override
    async def read(self, offset: int, buffer: memoryview) -> None:
        await asyncio.sleep(0.001 * (8 - offset // 512))
        if offset == 3 * 512:
            raise OSError(errno.ENOTSUP, "no")
        if offset == 4 * 512:
            raise RuntimeError("async")
        buffer[:] = bytes([offset // 512]) * len(buffer)

    @override
    async def write(self, offset: int, buffer: memoryview) -> None:
        super().write(offset, buffer)


def test_coroutines_run_side_by_side(caplog: pytest.LogCaptureFixture) -> None:
    disk = Slow()
    with on(disk) as stack:
        buffers = [bytearray(512) for _ in range(8)]
        tokens = stack.disk.submit([("read", 512 * n, b) for n, b in enumerate(buffers)])
        done: dict[int, int] = {}
        while len(done) < 8:
            done.update(stack.disk.reap())
        assert done[tokens[3]] == -errno.EOPNOTSUPP
        assert done[tokens[4]] == -errno.EIO
        assert [buffers[n][0] for n in (0, 1, 2, 5, 6, 7)] == [0, 1, 2, 5, 6, 7]
        assert disk.stats()["stale_views"] == 0
    assert "RuntimeError: async" in caplog.text


def test_coroutines_get_the_other_operations_too() -> None:
    disk = Slow()
    with on(disk) as stack:
        stack.disk.pwrite(b"w" * 1024, 512)
        stack.disk.write_zeroes(512, 512)
        stack.disk.flush()
        stack.disk.discard(0, 512)
    assert disk.data[512:1536] == bytes(512) + b"w" * 512
    assert ("discard", 0, 512) in disk.calls and ("flush",) in disk.calls


def test_loop_ends_with_its_disk() -> None:
    with on(Slow()) as stack:
        stack.disk.pread(512, 0)
        names = {thread.name for thread in threading.enumerate()}
        assert "vduse-asyncio" in names
    assert "vduse-asyncio" not in {thread.name for thread in threading.enumerate()}
