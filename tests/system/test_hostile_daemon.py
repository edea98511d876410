"""A device's program that sends garbage to the framework: it loses its own connection or gets an
errno, and all other devices, and the framework's service thread, go on."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.system.stage import Stage, nothing_left
from tests.unit.raw_device import Caller, RawDevice, blk_config, wait_packet
from vduse.bus.errors import DeviceTimedOut
from vduse.channel.packet import MAX_PACKET, Answer, Call
from vduse.control.abi import (
    DevConfig,
    DevResponse,
    ExtCall,
    Ioctl,
    IotlbEntry,
    SetStatus,
    VqEventfd,
    pack_name,
    pack_u32,
    pack_u64,
)

HOSTILE = "hostile"


@pytest.fixture
def control(stage: Stage) -> Iterator[Caller]:
    """A control connection of the hostile program's."""
    caller = Caller(stage.park.framework.control())
    yield caller
    caller.close()


@pytest.fixture
def device(stage: Stage, control: Caller) -> Iterator[RawDevice]:
    """Its device, which answers nothing by itself."""
    control.call(Ioctl.CREATE_DEV, blk_config(HOSTILE).pack())
    device = RawDevice.__new__(RawDevice)
    device.control, device.config, device.seen = control, blk_config(HOSTILE), []
    device.open(answering=False)
    yield device
    device.close()
    cleaner = Caller(stage.park.framework.control())
    assert stage.settled(lambda: not stage.park.framework.device(HOSTILE).connected)
    cleaner.call(Ioctl.DESTROY_DEV, pack_name(HOSTILE))
    cleaner.close()


def ended(sock: socket.socket) -> bool:
    """Waits for what comes next: is it the end of the connection?"""
    try:
        return wait_packet(sock) is None
    except ConnectionError:
        return True


class Garbage(NamedTuple):
    """A packet, how many fds it brings, and what the framework answers: an errno, or None for
    the end of the connection."""

    name: str
    data: bytes
    fds: int
    answer: int | None


def _call(nr: int, payload: bytes = b"") -> bytes:
    return Call(nr, 1, payload).pack()


ANYWHERE = [
    Garbage("a packet of no bytes", b"", 0, None),
    Garbage("one byte", b"\1", 0, None),
    Garbage("seven bytes", bytes(7), 0, None),
    Garbage("more than the longest packet", bytes(MAX_PACKET + 1), 0, None),
    Garbage("three fds", _call(Ioctl.GET_API_VERSION), 3, None),
    Garbage("a hundred fds", _call(Ioctl.GET_API_VERSION), 100, None),
    Garbage("fds and no bytes of sense", b"\0", 2, None),
]

CONTROL = [
    *ANYWHERE,
    Garbage("ioctl 0", _call(0), 0, errno.EINVAL),
    Garbage("ioctl 2^32 - 1", _call(0xFFFF_FFFF), 0, errno.EINVAL),
    Garbage("a device's ioctl", _call(Ioctl.VQ_SETUP, bytes(32)), 0, errno.EINVAL),
    Garbage("CREATE_DEV of 3 bytes", _call(Ioctl.CREATE_DEV, bytes(3)), 0, None),
    Garbage(
        "CREATE_DEV without name", _call(Ioctl.CREATE_DEV, bytes(DevConfig.SIZE)), 0, errno.EINVAL
    ),
    Garbage(
        "CREATE_DEV that promises more config",
        _call(Ioctl.CREATE_DEV, blk_config(HOSTILE).pack()[:-1]),
        0,
        None,
    ),
    Garbage("OPEN of nothing", _call(ExtCall.OPEN, pack_name("nobody")), 0, errno.ENOENT),
    Garbage("OPEN of no text", _call(ExtCall.OPEN, b"\xff" * 256), 0, errno.ENOENT),
    Garbage("OPEN of another's", _call(ExtCall.OPEN, pack_name("neighbour")), 0, errno.EBUSY),
    Garbage("DESTROY_DEV", _call(Ioctl.DESTROY_DEV, pack_name("neighbour")), 0, errno.EBUSY),
    Garbage("SET_API_VERSION", _call(Ioctl.SET_API_VERSION, pack_u64(9)), 0, errno.EINVAL),
]

_ENTRY = IotlbEntry(0, 0, (1 << 64) - 1, 0).pack()

DEVICE = [
    *ANYWHERE,
    Garbage("ioctl 0", _call(0), 0, errno.ENOTTY),
    Garbage("a control ioctl", _call(Ioctl.CREATE_DEV, bytes(332)), 0, errno.ENOTTY),
    Garbage("a struct cut short", _call(Ioctl.IOTLB_GET_FD, _ENTRY[:-1]), 0, None),
    Garbage("a struct and more", _call(Ioctl.IOTLB_GET_FD, _ENTRY + b"\0"), 0, None),
    Garbage("IOTLB of nothing", _call(Ioctl.IOTLB_GET_FD, _ENTRY), 0, errno.EINVAL),
    Garbage("virtqueue 2^32 - 1", _call(Ioctl.VQ_INJECT_IRQ, b"\xff" * 4), 0, errno.EINVAL),
    Garbage("irq before DRIVER_OK", _call(Ioctl.VQ_INJECT_IRQ, pack_u32(0)), 0, errno.EINVAL),
    Garbage(
        "a kick fd that did not come",
        _call(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, 5).pack()),
        0,
        errno.EBADF,
    ),
    Garbage(
        "a kick fd that is none",
        _call(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, 5).pack()),
        1,
        errno.EINVAL,
    ),
    Garbage("in-flight of 2^64 - 1", _call(ExtCall.GET_INFLIGHT_FD, b"\xff" * 8), 0, errno.EINVAL),
    Garbage("in-flight of nothing", _call(ExtCall.GET_INFLIGHT_FD, bytes(8)), 0, errno.EINVAL),
    Garbage("call fd of queue 7", _call(ExtCall.VQ_GET_CALLFD, pack_u32(7)), 0, errno.EINVAL),
]


def _send(sock: socket.socket, garbage: Garbage) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        socket.send_fds(sock, [garbage.data], [null] * garbage.fds)
    finally:
        os.close(null)


def _check(sock: socket.socket, garbage: Garbage) -> None:
    _send(sock, garbage)
    if garbage.answer is None:
        assert ended(sock)
        return
    packet = wait_packet(sock)
    assert packet is not None and not packet.fds
    assert Answer.unpack(packet.data).result == -garbage.answer


@pytest.mark.parametrize("garbage", CONTROL, ids=lambda garbage: garbage.name)
def test_garbage_on_a_control_socket(stage: Stage, garbage: Garbage) -> None:
    with nothing_left(stage), stage.neighbour_at_work():
        caller = Caller(stage.park.framework.control())
        _check(caller.sock, garbage)
        caller.close()
    assert HOSTILE not in stage.park.framework.devices


@pytest.mark.parametrize("garbage", DEVICE, ids=lambda garbage: garbage.name)
def test_garbage_on_a_device_s_call_socket(
    stage: Stage, device: RawDevice, garbage: Garbage
) -> None:
    with stage.neighbour_at_work():
        _check(device.calls.sock, garbage)


RESPONSES = [
    Garbage("one byte", b"\1", 0, None),
    Garbage("a response cut short", DevResponse(0).pack()[:-1], 0, None),
    Garbage("a response and more", DevResponse(0).pack() + b"\0", 0, None),
    Garbage("more than the longest packet", bytes(MAX_PACKET + 1), 0, None),
    Garbage("a response with an fd", DevResponse(0).pack(), 1, None),
]


@pytest.mark.parametrize("garbage", RESPONSES, ids=lambda garbage: garbage.name)
def test_garbage_on_a_message_socket(stage: Stage, device: RawDevice, garbage: Garbage) -> None:
    with stage.neighbour_at_work():
        _send(device.messages, garbage)
        if len(garbage.data) == DevResponse.SIZE - 1 or len(garbage.data) == DevResponse.SIZE + 1:
            # As write(2) of another size: refused, and the node stays open.
            assert device.calls.call(Ioctl.DEV_GET_FEATURES) == (bytes(8), ())
        elif len(garbage.data) == 1:
            assert device.calls.call(Ioctl.DEV_GET_FEATURES) == (bytes(8), ())
        else:
            assert ended(device.messages)


def test_answers_to_messages_never_sent(stage: Stage, device: RawDevice) -> None:
    """Thousands of them, as fast as they go: they hold nobody up."""
    with stage.neighbour_at_work():
        source = random.Random(1)
        for _ in range(5000):
            device.messages.sendall(DevResponse(source.randrange(1 << 32)).pack())
        assert device.calls.call(Ioctl.DEV_GET_FEATURES) == (bytes(8), ())


def test_calls_whose_answers_are_not_read(stage: Stage, device: RawDevice) -> None:
    """The program is cut off once its socket is full."""
    with stage.neighbour_at_work():
        call = _call(Ioctl.DEV_GET_FEATURES)
        with pytest.raises(OSError):
            while True:
                device.calls.sock.sendall(call)


def test_closed_in_the_middle_of_an_exchange(stage: Stage) -> None:
    with nothing_left(stage), stage.neighbour_at_work():
        for _ in range(50):
            caller = Caller(stage.park.framework.control())
            caller.sock.sendall(_call(Ioctl.GET_API_VERSION))
            caller.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_packets(stage: Stage, device: RawDevice, seed: int) -> None:
    """Numbers of real ioctls with payloads of any bytes: an answer each, or the end."""
    source = random.Random(seed)
    numbers = [*(int(nr) for nr in Ioctl), *(int(nr) for nr in ExtCall)]
    payload_of = {nr: nr >> 16 & 0x3FFF for nr in numbers}
    with stage.neighbour_at_work():
        for _ in range(300):
            nr = source.choice(numbers)
            size = source.choice([payload_of[nr], payload_of[nr], source.randrange(400)])
            fill = source.choice([b"\0", b"\xff", b"\1"])
            payload = source.choice([source.randbytes(size), fill * size])
            try:
                _, fds = device.calls.call(nr, payload)
            except (OSError, AssertionError, struct.error):
                device.close()
                device.open(answering=False)
                continue
            for fd in fds:
                os.close(fd)


def test_a_device_that_answers_nothing(stage: Stage, device: RawDevice) -> None:
    """Whoever asks it waits, up to msg_timeout; nobody else does."""
    device.set_up_queues()
    framework = stage.park.framework
    framework.device(HOSTILE).msg_timeout = 3.0  # it is read before that, on a busy machine too
    failures: list[BaseException] = []

    def add() -> None:
        try:
            framework.dev_add(HOSTILE)
        except DeviceTimedOut as error:
            failures.append(error)

    adder = threading.Thread(target=add)
    adder.start()
    assert device.receive().message == SetStatus(0)
    stage.check_neighbour()
    stage.check_whole()
    adder.join()
    assert len(failures) == 1
    assert ended(device.messages)


def test_a_device_of_very_many_queues(stage: Stage, control: Caller) -> None:
    """As many as the kernel allows. Two fds a queue: the process may have no more of them, which
    is the hostile program's own affair."""
    with nothing_left(stage), stage.neighbour_at_work():
        try:
            control.call(Ioctl.CREATE_DEV, blk_config(HOSTILE, queues=0xFFFF).pack())
        except OSError as error:
            assert error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        else:
            control.call(Ioctl.DESTROY_DEV, pack_name(HOSTILE))
