"""The stage of the tests of chains in Python's hands: a device that keeps what it is given, and a
raw driver."""

from __future__ import annotations

import queue as queues
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.system.python_device import served
from tests.system.stage import LIMIT, LogWatch
from vduse import _native
from vduse.control.features import DeviceId
from vduse.devices.virtio import VirtioDevice
from vduse.framework import Framework
from vduse.testing.rawdriver import FREE, RawDriver
from vduse.testing.rings import WRITE

NAME = "py0"

Handler = Callable[[int, _native.ChainBatch], None]


class Keeper(VirtioDevice):
    """Keeps all chains for the test, unless it is told how to serve."""

    DEVICE_ID = DeviceId.CONSOLE
    QUEUE_SIZES = (64, 64)

    def __init__(self, name: str, *, drain_timeout: float = LIMIT) -> None:
        super().__init__(name, packed=True, drain_timeout=drain_timeout)
        self._chains: queues.SimpleQueue[_native.Chain] = queues.SimpleQueue()
        self.serve: Handler | None = None
        #: Set by :meth:`drain`.
        self.draining = threading.Event()

    def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        if self.serve is not None:
            self.serve(queue, batch)
            return
        for chain in batch:
            self._chains.put(chain)

    def drain(self, queue: int) -> None:
        super().drain(queue)
        self.draining.set()

    def take(self) -> _native.Chain:
        """The next chain."""
        return self._chains.get(timeout=LIMIT)

    def taken(self) -> list[_native.Chain]:
        """Chains that nobody has asked for."""
        found = []
        while not self._chains.empty():
            found.append(self._chains.get())
        return found


class Stage:
    """A :class:`Keeper` under vhost_vdpa."""

    def __init__(self, framework: Framework, device: Keeper, log: LogWatch) -> None:
        self.framework = framework
        self.device = device
        self.log = log

    @contextmanager
    def raw(self, *, packed: bool = False) -> Iterator[RawDriver]:
        """A raw driver, not started."""
        driver = self.framework.bus.vhost(NAME).open()
        try:
            with RawDriver(driver, packed=packed) as raw:
                yield raw
        finally:
            driver.close()

    def check_whole(self, *, packed: bool = False) -> None:
        """A driver that behaves gets served."""
        with self.raw(packed=packed) as raw:
            assert raw.start()
            offer(raw, 4)
            chain = self.device.take()
            chain.write(b"ok")
            chain.complete()
            (used,) = raw.wait_used(1)
            assert (used.length, raw.memory.read(FREE, 2)) == (2, b"ok")


def offer(raw: RawDriver, length: int, readable: bytes = b"") -> int:
    """A chain of ``readable`` and ``length`` writable bytes at :data:`FREE`, and a kick; its id."""
    parts = [(raw.at(FREE), length, WRITE)] if length else []
    if readable:
        raw.memory.write(FREE + length, readable)
        parts.insert(0, (raw.at(FREE + length), len(readable), 0))
    id = raw.submit(parts)
    raw.kick()
    return id


@pytest.fixture
def stage() -> Iterator[Stage]:
    device = Keeper(NAME)
    with (
        LogWatch("WARNING") as log,
        Framework(device_ids=[DeviceId.CONSOLE]) as framework,
        served(device, framework),
    ):
        framework.dev_add(NAME, driver="vhost_vdpa")
        yield Stage(framework, device, log)
        framework.dev_del(NAME)
