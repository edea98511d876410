"""A live driver's next program: the record that it goes on from, and the messages that waited."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.kernel.guest.bed import MIB, InThread, node_of, read_direct, rebind, write_direct
from tests.waiting import eventually
from vduse import _native
from vduse.channel.inflight_header import InflightHeader
from vduse.channel.kernel import KernelChannel, KernelControl
from vduse.control.abi import DevRequest, DevResponse, GetVqState, SetStatus, UpdateIotlb
from vduse.device.queues import QueueError
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver, VdpaBus
from vduse.vdpa.netlink import VdpaManagement

pytestmark = pytest.mark.usefixtures("modules")

RECORD = Path("/run/vduse/disk0.inflight")
QUEUES, QUEUE_SIZE = 2, 64


@pytest.fixture
def disk(control: KernelControl) -> Iterator[Callable[[], BlkDevice]]:
    """Another program's device of the same disk; the last one is taken off the bus."""
    backend = _native.Backend.memory(16 * MIB)
    made: list[BlkDevice] = []

    def make() -> BlkDevice:
        made.append(BlkDevice("disk0", backend, queues=QUEUES, queue_size=QUEUE_SIZE))
        return made[-1]

    yield make
    with VdpaManagement() as vdpa:
        if "disk0" in VdpaBus().names():
            vdpa.delete("disk0")
    made[-1].close(destroy=True)
    backend.close()


def add(vdpa: VdpaManagement) -> None:
    vdpa.add("disk0")


def delete(vdpa: VdpaManagement) -> None:
    vdpa.delete("disk0")


def put_on_the_bus(device: BlkDevice, control: KernelControl) -> BlkDevice:
    """Serves it and adds it; the same device."""
    device.start(control)
    with VdpaManagement() as vdpa:
        add(vdpa)
    return device


@contextmanager
def program(control: KernelControl) -> Iterator[KernelChannel]:
    """One that serves by hand until it is killed: its node closes, and that is all."""
    channel = control.open("disk0")
    try:
        yield channel
    finally:
        channel.close()


def next_message(channel: KernelChannel) -> DevRequest:
    return eventually(channel.receive, "a message")


def works(data: bytes) -> None:
    node = node_of("disk0")
    write_direct(node, MIB, data)
    assert read_direct(node, MIB, len(data)) == data


# --- records --------------------------------------------------------------------------------------


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        records, header = data[: -InflightHeader.SIZE], data[-InflightHeader.SIZE :]
        changed = replace(InflightHeader.unpack(header), **fields)
        return records + changed.pack()

    return change


DOUBTFUL: dict[str, Callable[[bytes], bytes]] = {
    "made before the last boot": changed(boot=bytes(16)),
    "of another device that had this name": changed(device=1),
    "the driver's features were 0x1": changed(features=1),
    "wrong checksum": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "a truncated one": lambda data: data[:-64],
    "no in-flight record": lambda data: bytes(len(data)),
}


def test_doubtful_record_is_ignored_with_a_log_line(
    control: KernelControl, disk: Callable[[], BlkDevice], caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing is taken over then; with the record as it was, everything is."""
    device = put_on_the_bus(disk(), control)
    works(b"1" * 4096)
    device.close()
    right = RECORD.read_bytes()
    for why, spoil in DOUBTFUL.items():
        RECORD.write_bytes(spoil(right))
        caplog.clear()
        with pytest.raises(QueueError, match="no in-flight record says"):
            disk().start(control)
        assert "in-flight record ignored" in caplog.text
        assert why in caplog.text
    RECORD.write_bytes(right)
    assert disk().start(control)
    works(b"2" * 4096)


def test_record_of_a_device_that_was_destroyed_is_ignored(
    control: KernelControl, disk: Callable[[], BlkDevice], caplog: pytest.LogCaptureFixture
) -> None:
    """By another program, which did not know of the record."""
    device = disk()
    device.start(control)
    with VdpaManagement() as vdpa:
        vdpa.add("disk0")
        vdpa.delete("disk0")
    left = RECORD.read_bytes()
    device.close(destroy=True)
    assert not RECORD.exists()
    RECORD.write_bytes(left)
    RECORD.chmod(0o600)
    again = disk()
    assert not again.start(control)
    with VdpaManagement() as vdpa:
        vdpa.add("disk0")
    assert "of another device that had this name" in caplog.text
    works(b"3" * 4096)
    again.close()
    assert disk().start(control)
    works(b"4" * 4096)


# --- messages that nobody answered ----------------------------------------------------------------


@pytest.mark.parametrize("armed", [False, True], ids=["before its queues ran", "with queues"])
def test_killed_at_driver_ok(
    control: KernelControl, disk: Callable[[], BlkDevice], armed: bool
) -> None:
    device = disk()
    device.start(control)
    device.close()
    with program(control) as channel:
        adding = InThread(add)
        while (request := next_message(channel)).message != SetStatus(0xF):
            if request.message == SetStatus(0):
                channel.clear_inflight()
            channel.respond(DevResponse(request.request_id))
        if armed:
            features = channel.dev_get_features()
            size = QUEUES * _native.BlkDataPath.inflight_size(QUEUE_SIZE, features)
            fd = channel.get_inflight_fd(size, features, fresh=True)
            assert fd is not None
            os.close(fd)
    assert disk().start(control)
    assert adding.result() is None
    works(b"5" * 4096)


@pytest.mark.parametrize("cleared", [False, True], ids=["before", "after clearing its record"])
def test_killed_at_a_reset(
    control: KernelControl, disk: Callable[[], BlkDevice], cleared: bool
) -> None:
    device = put_on_the_bus(disk(), control)
    works(b"6" * 4096)
    device.close()
    with program(control) as channel:
        deleting = InThread(delete)
        assert next_message(channel).message == SetStatus(0)
        if cleared:
            channel.clear_inflight()
    assert disk().start(control)
    assert deleting.result() is None
    with VdpaManagement() as vdpa:
        vdpa.add("disk0")
    works(b"7" * 4096)


#: A live driver on vhost-vdpa that does one thing a line.
FRONT_END = """
import os, sys
from vduse.vdpa.vhost import VhostVdpaDriver
driver = VhostVdpaDriver(sys.argv[1])
driver.set_status(1)
driver.set_status(3)
driver.set_features(driver.get_features())
driver.set_status(0xB)
driver.set_status(0xF)
memory = os.memfd_create("memory")
os.ftruncate(memory, 4096)
print(driver.get_status(), flush=True)
sys.stdin.readline()
print(driver.iotlb_update(0x10000, 4096, memory, 0, 3), flush=True)
sys.stdin.readline()
print(driver.get_vring_base(0), flush=True)
sys.stdin.readline()
print(driver.set_status(0), flush=True)
sys.stdin.readline()
driver.close()
"""


def test_killed_at_what_a_live_vhost_vdpa_asks(
    control: KernelControl, disk: Callable[[], BlkDevice]
) -> None:
    device = put_on_the_bus(disk(), control)
    argv = [sys.executable, "-c", FRONT_END, rebind("disk0", BusDriver.VHOST_VDPA)]
    with subprocess.Popen(argv, stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as front_end:
        assert front_end.stdin is not None and front_end.stdout is not None
        assert front_end.stdout.readline() == "15\n"
        expected = {UpdateIotlb: "None\n", GetVqState: "0\n", SetStatus: "None\n"}
        for message, answer in expected.items():
            device.close()
            front_end.stdin.write("\n")
            with program(control) as channel:
                assert isinstance(next_message(channel).message, message)
            device = disk()
            assert device.start(control)
            assert front_end.stdout.readline() == answer
        front_end.communicate("\n")
    assert front_end.returncode == 0
    rebind("disk0", BusDriver.VIRTIO_VDPA)
    works(b"8" * 4096)
