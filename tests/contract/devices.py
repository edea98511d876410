"""Devices made of nothing but `Channel`: what a test says is what they do."""

from __future__ import annotations

import errno
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import pytest

from tests.contract.ports import Node, Program
from vduse.bus.driver import Driver
from vduse.channel.base import Channel
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    Message,
    RequestResult,
    encode_vq_state,
)
from vduse.control.features import DeviceId, Feature, Status

T = TypeVar("T")

#: Seconds within which everything must happen that is to happen.
DEADLINE = 60.0
#: Virtqueue size of a raw device.
QUEUE_SIZE = 64

BASE = int(Feature.VERSION_1 | Feature.ACCESS_PLATFORM)
STARTED = int(Status.ACKNOWLEDGE | Status.DRIVER)
AGREED = STARTED | int(Status.FEATURES_OK)
LIVE = AGREED | int(Status.DRIVER_OK)

#: Bytes of the bounce region in tests that fill it.
BOUNCE = 1 << 20
#: Sectors of a raw block device.
SECTORS = 2048


def blk_config(
    name: str = "vd0",
    *,
    device_id: int = DeviceId.BLOCK,
    features: int = BASE,
    vq_num: int = 1,
    vq_align: int = 4096,
    config: bytes = SECTORS.to_bytes(8, "little") + bytes(52),
    groups: int = 0,
    spaces: int = 0,
) -> DevConfig:
    """What VDUSE_CREATE_DEV takes."""
    return DevConfig(name, 0, device_id, features, vq_num, vq_align, config, groups, spaces)


@contextmanager
def refused(*expected: int) -> Iterator[None]:
    """The block raises OSError with (one of) these errnos."""
    with pytest.raises(OSError) as caught:
        yield
    names = [errno.errorcode[number] for number in expected]
    assert errno.errorcode.get(caught.value.errno or 0) in names, caught.value


def background(call: Callable[[], T]) -> Future[T]:
    """Runs ``call`` on a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def ok(request: DevRequest) -> DevResponse:
    """A device that agrees."""
    return DevResponse(request.request_id)


def refuse(request: DevRequest) -> DevResponse:
    """A device that does not."""
    return DevResponse(request.request_id, RequestResult.FAILED)


class RawDevice:
    """A device whose node this program has open. Messages are taken one by one with
    :meth:`receive`, or answered by a thread (:meth:`serve`)."""

    def __init__(self, program: Program, name: str, node: Node) -> None:
        self.program = program
        self.name = name
        self.node = node
        #: Messages that the thread has answered, in order.
        self.seen: list[Message] = []
        #: How it answers; None: not at all.
        self.reply: Callable[[DevRequest], DevResponse | None] = ok
        self._thread: threading.Thread | None = None
        self._stopping = False

    @classmethod
    def create(
        cls, program: Program, config: DevConfig | None = None, *, queue_size: int = QUEUE_SIZE
    ) -> RawDevice:
        """Creates it, opens it, sets its virtqueues up."""
        config = config or blk_config()
        program.control.create_dev(config)
        device = cls.open(program, config.name)
        for index in range(config.vq_num):
            device.channel.vq_setup(index, queue_size)
        return device

    @classmethod
    def open(cls, program: Program, name: str = "vd0") -> RawDevice:
        """Opens the node of a device that is there."""
        return cls(program, name, program.open(name))

    @property
    def channel(self) -> Channel:
        return self.node.channel

    def receive(self) -> DevRequest:
        """Waits for the next message."""
        while True:
            request = self.channel.receive()
            if request is not None:
                return request
            assert self.node.wait(DEADLINE), "no message came"

    def answer(self, request: DevRequest, result: int = RequestResult.OK) -> None:
        self.channel.respond(DevResponse(request.request_id, result))

    def answer_position(self, request: DevRequest, index: int, *position: int) -> None:
        """The answer to GET_VQ_STATE."""
        state = encode_vq_state(position)
        self.channel.respond(replace(ok(request), vq_index=index, vq_state=state))

    def nothing_to_read(self) -> bool:
        return self.channel.receive() is None

    def serve(self) -> RawDevice:
        """Answers messages on a thread from now on; itself."""
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """close(2) of the node."""
        self.stop()
        self.channel.close()

    def stop(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._stopping = True
            self.node.interrupt()
            self._thread.join(DEADLINE)
            assert not self._thread.is_alive()
            self._thread = None
            self.node.clear_interrupt()

    def _serve(self) -> None:
        try:
            while not self._stopping:
                # Nothing may come for long.
                request = self.channel.receive() if self.node.wait(DEADLINE) else None
                if request is not None:
                    self.seen.append(request.message)
                    response = self.reply(request)
                    if response is not None:
                        self.channel.respond(response)
        except OSError:
            return  # the platform or the program has ended


def make_live(driver: Driver, features: int = BASE) -> None:
    """All of a driver's start, without queues."""
    driver.set_status(0)
    go_live(driver, features)


def go_live(driver: Driver, features: int = BASE) -> None:
    """The same of a device that was reset, whose queues may be set up."""
    driver.set_status(Status.ACKNOWLEDGE)
    driver.set_status(STARTED)
    driver.set_features(features)
    driver.set_status(AGREED)
    driver.set_status(LIVE)


def readable(fd: int, timeout: float = DEADLINE) -> bool:
    """Whether an eventfd is signalled within ``timeout`` seconds."""
    return bool(select.select([fd], [], [], timeout)[0])
