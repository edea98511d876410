"""An entropy device served in Python, from end to end: our driver, in this process and in a
child, on split and packed virtqueues; takeover."""

from __future__ import annotations

import asyncio
import errno
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.python_device import (
    NAME,
    StreamRng,
    Where,
    rng_stack,
    served,
    served_by_child,
    stream,
)
from tests.system.stage import LIMIT, LogWatch
from vduse import _native
from vduse.bus.class_driver import QueueDriver
from vduse.bus.errors import NoDriver
from vduse.bus.virtio_blk import VirtioBlk
from vduse.bus.virtio_rng import VirtioRng
from vduse.control.features import DeviceId
from vduse.device.device import DeviceError
from vduse.devices.virtio import VirtioDevice
from vduse.framework import Framework

both_formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@both_formats
@pytest.mark.parametrize("where", ["process", "child"])
def test_5_4_what_is_read_is_what_the_device_writes(where: Where, packed: bool) -> None:
    with rng_stack(where, packed=packed) as stack:
        rng = stack.framework.driver(NAME, VirtioRng)
        parts = [rng.read(length) for length in (1, 4096, 0, 100_000, 3 << 20)]
        assert b"".join(parts) == stream(sum(map(len, parts)))


def test_readers_of_several_threads_get_different_bytes() -> None:
    with rng_stack("process") as stack, ThreadPoolExecutor(4) as threads:
        rng = stack.framework.driver(NAME, VirtioRng)
        parts = set(threads.map(lambda _: rng.read(64), range(64)))
        assert len(parts) == 64


class Silent(VirtioDevice):
    """Answers when it is told to."""

    DEVICE_ID = DeviceId.RNG

    def __init__(self) -> None:
        super().__init__(NAME, drain_timeout=LIMIT)
        self.kept: list[_native.Chain] = []
        self._came = threading.Semaphore(0)

    def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        self.kept += batch
        self._came.release(len(batch))

    def wait_kept(self) -> None:
        """Waits for one more chain."""
        assert self._came.acquire(timeout=LIMIT)

    def drain(self, queue: int) -> None:
        for chain in self.kept:
            chain.complete(0)


def test_a_read_times_out_and_the_late_answer_is_nobodys() -> None:
    device = Silent()
    with Framework(device_ids=[DeviceId.RNG]) as framework, served(device, framework):
        framework.dev_add(NAME)
        rng = framework.driver(NAME, VirtioRng)
        with pytest.raises(TimeoutError):
            rng.read(4, timeout=0.01)
        with ThreadPoolExecutor(1) as thread:
            second = thread.submit(rng.read, 4, LIMIT)
            device.wait_kept()
            device.wait_kept()
            for chain, answer in zip(device.kept, (b"late", b"next"), strict=True):
                chain.write(answer)
                chain.complete()
            assert second.result() == b"next"
        framework.dev_del(NAME)


class Waiting(VirtioDevice):
    """Answers on its own loop, once it has seen two batches; the third is a mistake."""

    DEVICE_ID = DeviceId.RNG

    def __init__(self) -> None:
        super().__init__(NAME, drain_timeout=LIMIT)
        self._batches = 0
        self.came = threading.Semaphore(0)
        self._second = asyncio.Event()

    async def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        self._batches += 1
        self.came.release()
        if self._batches == 2:
            self._second.set()
        await self._second.wait()
        assert self._batches < 3, "a third batch"
        for chain in batch:
            chain.write(b"awaited!")
            chain.complete()


def test_an_async_device_serves_batches_side_by_side() -> None:
    device = Waiting()
    with (
        LogWatch() as log,
        Framework(
            device_ids=[DeviceId.RNG], class_drivers={DeviceId.RNG: QueueDriver}
        ) as framework,
        served(device, framework),
    ):
        framework.dev_add(NAME)
        (queue,) = framework.driver(NAME, QueueDriver).queues
        found: list[bytes] = []
        for _ in range(2):
            queue.add([], [8])
            queue.kick()
            assert device.came.acquire(timeout=LIMIT)
        while len(found) < 2:
            assert queue.wait(LIMIT)
            found += [data for _, data in queue.reap()]
        assert found == [b"awaited!"] * 2
        queue.add([], [8])
        queue.kick()
        assert queue.wait(LIMIT)
        assert [data for _, data in queue.reap()] == [b""]
        assert "a third batch" in log.wait_for(f"{NAME}: virtqueue 0: a batch of chains failed")
        framework.dev_del(NAME)


@both_formats
def test_who_takes_over_gets_the_chains_that_were_held(packed: bool) -> None:
    with Framework(device_ids=[DeviceId.RNG]) as framework, ThreadPoolExecutor(1) as thread:
        child = served_by_child(framework, packed=packed, hold=True)
        with child as process:
            framework.dev_add(NAME)
            rng = framework.driver(NAME, VirtioRng)
            read = thread.submit(rng.read, 16)
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            process.kill()
        with served(StreamRng(NAME, packed=packed), framework):
            assert read.result(LIMIT) == stream(16)
            framework.dev_del(NAME)


def test_a_removed_device_ends_reads() -> None:
    device = Silent()
    with Framework(device_ids=[DeviceId.RNG]) as framework, served(device, framework):
        framework.dev_add(NAME)
        rng = framework.driver(NAME, VirtioRng)
        with ThreadPoolExecutor(1) as thread:
            read = thread.submit(rng.read, 4)
            device.wait_kept()
            framework.dev_del(NAME)
            with pytest.raises(OSError) as ended:
                read.result(LIMIT)
        assert ended.value.errno == errno.ENODEV


def test_an_empty_answer_is_an_error_of_the_device() -> None:
    class Empty(Silent):
        def submit(self, queue: int, batch: _native.ChainBatch) -> None:
            batch.complete(0)

    device = Empty()
    with Framework(device_ids=[DeviceId.RNG]) as framework, served(device, framework):
        framework.dev_add(NAME)
        with pytest.raises(OSError, match="used with no bytes"):
            framework.driver(NAME, VirtioRng).read(4)
        framework.dev_del(NAME)


def test_device_without_an_id_is_refused() -> None:
    class Nothing(VirtioDevice):
        def submit(self, queue: int, batch: _native.ChainBatch) -> None:
            batch.complete()

    with pytest.raises(TypeError, match="Nothing has no DEVICE_ID"):
        Nothing("dev0")


def test_other_device_types_are_refused_unless_they_are_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "vduse.channel")
    device = StreamRng(NAME)
    with Framework() as framework, pytest.raises(OSError) as refused, served(device, framework):
        pass
    assert refused.value.errno == errno.EINVAL
    assert "control: call refused: " in caplog.text and "device id 4" in caplog.text


class Echo(VirtioDevice):
    """A device type of the test's own."""

    DEVICE_ID = 42

    def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        for chain in batch:
            chain.write(chain.read()[::-1])
            chain.complete()

    def config(self) -> bytes:
        return b"echo"


class EchoDriver(QueueDriver):
    """Its driver."""

    def echo(self, *pieces: bytes) -> bytes:
        """All pieces, backwards."""
        (queue,) = self.queues
        queue.add(list(pieces), [5, 100])
        queue.kick()
        assert queue.wait(LIMIT)
        ((_, data),) = queue.reap()
        assert queue.outstanding == 0
        return data


def test_a_device_type_and_a_class_driver_of_ones_own() -> None:
    device = Echo("echo0")
    with (
        Framework(device_ids=[42], class_drivers={42: EchoDriver}) as framework,
        served(device, framework),
        LogWatch("WARNING") as log,
    ):
        framework.dev_add("echo0")
        driver = framework.driver("echo0", EchoDriver)
        assert driver.echo(b"abc", b"defgh") == b"hgfedcba"
        assert driver.config() == b"echo"
        with pytest.raises(NoDriver, match="driven by EchoDriver, no VirtioBlk"):
            framework.driver("echo0", VirtioBlk)
        with pytest.raises(ValueError, match="never fits"):
            driver.queues[0].add([], [])
        framework.dev_del("echo0")
        with pytest.raises(OSError) as ended:
            driver.echo(b"")
        assert ended.value.errno == errno.ENODEV
        assert log.lines == []


def test_a_framework_without_a_class_driver_says_so() -> None:
    with (
        Framework(device_ids=[42]) as framework,
        served(Echo("echo0"), framework),
        pytest.raises(NoDriver, match="virtio device 42"),
    ):
        framework.dev_add("echo0")


@pytest.mark.parametrize("sizes", [(0,), (3,), (128, 1 << 16)])
def test_queue_sizes_are_powers_of_two(sizes: tuple[int, ...]) -> None:
    kind = type("Odd", (Echo,), {"QUEUE_SIZES": sizes})
    with pytest.raises(ValueError, match="QUEUE_SIZES"):
        kind("odd0")


class Leaving(VirtioDevice):
    """Its program wants to end."""

    DEVICE_ID = DeviceId.RNG

    async def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        raise SystemExit("bye")


def test_an_exit_in_a_coroutine_is_its_batchs_mistake_alone() -> None:
    device = Leaving(NAME)
    with (
        LogWatch() as log,
        Framework(device_ids=[DeviceId.RNG]) as framework,
        served(device, framework),
    ):
        framework.dev_add(NAME)
        rng = framework.driver(NAME, VirtioRng)
        with pytest.raises(OSError):
            rng.read(4)
        words = log.wait_for(f"{NAME}: virtqueue 0: a batch of chains failed")
        assert "SystemExit: bye" in words
        framework.dev_del(NAME)


def test_a_handler_cannot_close_its_own_device() -> None:
    refused: list[str] = []

    class Closing(StreamRng):
        def submit(self, queue: int, batch: _native.ChainBatch) -> None:
            with pytest.raises(DeviceError) as caught:
                self.close()
            refused.append(str(caught.value))
            super().submit(queue, batch)

    with Framework(device_ids=[DeviceId.RNG]) as framework, served(Closing(NAME), framework):
        framework.dev_add(NAME, driver="virtio_vdpa")
        assert framework.driver(NAME, VirtioRng).read(16) == stream(16)
        framework.dev_del(NAME)
    assert refused[0].startswith(f"{NAME}: closed by a handler on the worker")
