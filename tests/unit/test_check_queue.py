"""The checking driver's virtqueue, with a device that does its steps when the driver waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from typing import Any

from tests.unit.check_ring import DeviceQueue
from vduse.check import rules
from vduse.check.buffers import Buffers
from vduse.check.canvas import GUARD, Canvas
from vduse.check.queue import Queue
from vduse.check.stage import Timing
from vduse.check.verdict import Ledger
from vduse.control.abi import VqInfo
from vduse.control.features import Feature
from vduse.testing.rawdriver import T_FLUSH


class Scene:
    """As much of a :class:`~vduse.check.stage.Stage` as a virtqueue uses. Before each wait for an
    interrupt the device does one of its ``steps``."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.timing = Timing()
        self.steps: Iterator[Callable[[], None]] = iter(())

    def check_alive(self) -> None:
        next(self.steps, lambda: None)()


class Whole:
    """The driver's memory by IOVA."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas

    def read(self, iova: int, length: int) -> bytes:
        return self._canvas.read(iova - self._canvas.iova, length)

    def write(self, iova: int, data: bytes) -> None:
        self._canvas.write(iova - self._canvas.iova, data)


def test_2_7_7_the_next_interrupt_is_asked_for_behind_an_element_that_names_no_request() -> None:
    """The driver takes that one alone: the device has not used the request yet."""
    scene: Any = Scene()
    features = int(Feature.VERSION_1 | Feature.EVENT_IDX)
    room = count(GUARD + 0x1000, 0x100)
    with Canvas(0x10000, 0) as canvas, ExitStack() as exits:
        buffers = Buffers(canvas, lambda length: next(room))
        queue = Queue(scene, canvas, buffers, GUARD, 0, 8, features)
        exits.callback(queue.close)
        device = DeviceQueue(Whole(canvas), VqInfo(0, 8, *queue.ring.areas), features)
        request = queue.submit(T_FLUSH)
        chain = device.take()
        assert chain is not None

        def put(id: int) -> None:
            if device.put(replace(chain, id=id), 1):
                os.eventfd_write(queue.call, 1)

        scene.steps = iter((lambda: put(7), lambda: put(chain.id)))
        assert queue.wait(1) == [request]
    assert scene.ledger.failed(rules.USED_ID)
    assert not scene.ledger.failed(rules.IRQ_ANNOUNCED)
