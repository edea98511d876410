"""Disks written in Python: their end, their forks, what keeps them alive."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import threading
import weakref
from dataclasses import dataclass
from logging.handlers import QueueHandler
from queue import SimpleQueue

import pytest
from typing_extensions import override

from tests.unit.test_python_backend import LOG, SIZE, Batches, Ram, Slow, failure, on
from vduse import _native
from vduse.backends.layers import read_only
from vduse.backends.python import IoBatch, PythonBackend
from vduse.channel.embedded import EmbeddedControl
from vduse.device.device import DeviceError
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework
from vduse.testing.harness import blk_stack


def test_closed_is_called_once_and_after_the_last_request() -> None:
    calls: list[str] = []

    class Closing(Ram):
        @override
        def flush(self) -> None:
            calls.append("flush")

        @override
        def closed(self) -> None:
            calls.append("closed")

    disk = Closing()
    with on(disk) as stack:
        stack.disk.pread(512, 0)
    disk.close()
    assert calls[-2:] == ["flush", "closed"] and calls.count("closed") == 1


def test_backend_in_use_is_not_closed_nor_collected() -> None:
    ram = Ram()
    with blk_stack(backend=ram.native) as stack:
        assert failure(ram.close) == errno.EBUSY
        known = weakref.ref(ram)
        del ram
        gc.collect()
        assert known() is not None
        stack.disk.pwrite(b"g" * 512, 0)
        assert stack.disk.pread(512, 0) == b"g" * 512


def test_unused_backend_is_collected() -> None:
    ram = Ram()
    assert ram.native.size == SIZE
    known = weakref.ref(ram)
    del ram
    gc.collect()
    assert known() is None


def test_device_of_a_python_disk_has_a_pool_of_its_own() -> None:
    stuck, go = threading.Event(), threading.Event()

    class Stuck(Ram):
        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            stuck.set()
            go.wait(60)

    with on(Stuck()) as one, on(Ram()) as other, blk_stack(backend="memory") as third:
        one.disk.submit([("read", 0, bytearray(512))])
        assert stuck.wait(60)
        assert other.disk.pread(512, 0) == third.disk.pread(512, 0) == bytes(512)
        go.set()
        one.disk.reap()
        assert one.blk.pool.workers == 1


def test_forked_child_cannot_use_a_batch() -> None:
    answers: list[int] = []

    def handle(batch: IoBatch) -> None:
        request = batch[0]
        child = os.fork()
        if child == 0:
            code = 1
            try:
                request.complete()
            except RuntimeError:
                code = 0
            os._exit(code)
        answers.append(os.waitpid(child, 0)[1])
        batch.complete()

    with on(Batches(handle)) as stack:
        stack.disk.pread(512, 0)
    assert answers == [0]


def test_logger_is_the_backends() -> None:
    assert logging.getLogger(LOG).name == LOG
    assert issubclass(_native.PythonBackend, _native.Backend)


def test_disk_may_be_a_dataclass() -> None:
    @dataclass
    class Sized(PythonBackend):  # compares, and so has no hash
        size: int = SIZE

        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            buffer[:] = b"d" * len(buffer)

    with on(Sized()) as stack:
        assert stack.disk.pread(512, 0) == b"d" * 512


def test_buffer_that_was_released_by_its_user_is_made_anew() -> None:
    def handle(batch: IoBatch) -> None:
        for request in batch:
            with request.buffer as first:
                first[:2] = b"ab"
            request.buffer[2:4] = b"cd"
        batch.complete()

    with on(Batches(handle)) as stack:
        assert stack.disk.pread(512, 0)[:4] == b"abcd"


def test_tasks_in_flight_are_cancelled_when_the_disk_is_closed() -> None:
    ended: list[str] = []

    class Late(Slow):
        @override
        async def read(self, offset: int, buffer: memoryview) -> None:
            buffer[:] = bytes(len(buffer))
            self.watch = asyncio.get_running_loop().create_task(self._watch())

        async def _watch(self) -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

    with on(Late()) as stack:
        stack.disk.pread(512, 0)
    assert ended == ["cancelled"]


class Layered(Ram):
    """Keeps a layer on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = read_only(self.native)


def test_disk_that_keeps_its_own_layer_is_collected() -> None:
    ram = Layered()
    known = weakref.ref(ram)
    gc.collect()
    assert known() is not None
    del ram
    gc.collect()
    assert known() is None


def test_layer_in_use_keeps_its_disk() -> None:
    ram = Layered()
    known = weakref.ref(ram)
    with blk_stack(backend=ram.layer) as stack:
        del ram
        gc.collect()
        assert known() is not None
        assert stack.disk.pread(512, 0) == bytes(512)


def test_no_token_is_completed_where_one_error_is_none() -> None:
    kept: list[IoBatch] = []
    came = threading.Event()

    def handle(batch: IoBatch) -> None:
        kept.append(batch)
        came.set()

    disk = Batches(handle)
    with on(disk) as stack:
        stack.disk.submit([("read", 0, bytearray(512))])
        assert came.wait(60)
        token = kept[0][0].token
        with pytest.raises(ValueError, match="neither"):
            disk.complete([token, token], [0, -5])
        assert kept[0].open == 1
        disk.complete(token)
        stack.disk.reap()
        kept.clear()


class Never(Ram):
    """Completes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[IoBatch] = []

    @override
    def submit(self, batch: IoBatch) -> None:
        self.kept.append(batch)


def test_close_does_not_wait_for_ever_for_a_flush() -> None:
    never = Never()
    with Framework() as framework:
        control = EmbeddedControl(framework.control())
        device = BlkDevice("disk0", never, drain_timeout=0.1)
        device.start(control)
        said = "disk0: the backend's flush has not ended within 0.1 s"
        with pytest.raises(TimeoutError, match=said):
            device.close(destroy=True)
        assert framework.devices == {}
        control.close()
    for batch in never.kept:
        batch.complete()


def test_a_handler_cannot_close_its_own_device(caplog: pytest.LogCaptureFixture) -> None:
    class Closing(Ram):
        device: BlkDevice

        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            with pytest.raises(DeviceError, match="disk0: closed by a handler on the worker"):
                self.device.close()
            super().read(offset, buffer)

    disk = Closing()
    with Framework() as framework:
        control = EmbeddedControl(framework.control())
        disk.device = device = BlkDevice("disk0", disk)
        device.start(control)
        framework.dev_add("disk0", driver="virtio_vdpa")
        assert framework.disk("disk0").pread(512, 0) == bytes(512)
        assert device.ended is None
        framework.dev_del("disk0")
        device.close(destroy=True)
        control.close()
    assert caplog.records == []


def test_what_a_backend_fails_is_in_the_log_once() -> None:
    class Failing(Ram):
        @override
        def read(self, offset: int, buffer: memoryview) -> None:
            raise OSError(errno.EIO, "no")

    said: SimpleQueue[logging.LogRecord] = SimpleQueue()
    log = logging.getLogger("vduse.device.device")
    log.addHandler(handler := QueueHandler(said))
    try:
        with on(Failing()) as stack:
            for sector in range(3):
                with pytest.raises(OSError, match="error"):
                    stack.disk.pread(512, 512 * sector)
            line = said.get(timeout=60).message
    finally:
        log.removeHandler(handler)
    assert line == (
        "disk0: virtqueue 0: the backend failed: read of 512 bytes at 0: "
        "Input/output error (os error 5)"
    )
    assert said.empty()
