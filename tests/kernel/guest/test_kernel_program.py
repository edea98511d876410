"""What becomes of a device whose program does not answer, or goes, on the kernel's bus."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.guest.bed import (
    InThread,
    node_of,
    read_direct,
    set_msg_timeout,
    write_direct,
)
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.device.control_thread import ControlThread
from vduse.device.queues import QueueError
from vduse.devices.blk import BlkDevice
from vduse.vdpa.netlink import VdpaManagement

pytestmark = pytest.mark.usefixtures("modules")


@pytest.fixture
def thread() -> Iterator[ControlThread]:
    """One of its own: a test may hold it up."""
    thread = ControlThread()
    yield thread
    thread.close()


def test_device_that_is_given_up_ends_and_says_why(
    control: KernelControl, backend: _native.Backend, thread: ControlThread
) -> None:
    device = BlkDevice("disk0", backend, thread=thread)
    device.start(control)
    set_msg_timeout("disk0", 1)
    go_on = threading.Event()

    def hold() -> None:
        go_on.wait()

    thread.post(hold)
    assert InThread(lambda vdpa: vdpa.add("disk0")).result() is None
    go_on.set()
    reason = device.wait(30)
    assert reason is not None
    assert "/sys/class/vduse/disk0/msg_timeout" in reason
    # The way back that it names.
    with VdpaManagement() as vdpa:
        vdpa.delete("disk0")
    device.close(destroy=True)
    again = BlkDevice("disk0", backend)
    assert not again.start(control)
    again.close(destroy=True)


def test_live_driver_is_not_taken_over_without_records(
    backend: _native.Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests may be open of which nobody knows: that is refused, and the device stays."""
    nowhere = tmp_path / "a file, no directory"
    nowhere.touch()
    control = KernelControl(records=str(nowhere))
    device = BlkDevice("disk0", backend)
    device.start(control)
    with VdpaManagement() as vdpa:
        vdpa.add("disk0")
        write_direct(node_of("disk0"), 0, b"l" * 4096)
        assert "no in-flight record can be kept" in caplog.text
        device.close()
        with pytest.raises(QueueError, match="no in-flight record"):
            BlkDevice("disk0", backend).start(control)
        # Nobody answers the reset: the kernel gives the device up, and lets go of it.
        set_msg_timeout("disk0", 1)
        vdpa.delete("disk0")
    control.destroy_dev("disk0")
    again = BlkDevice("disk0", backend)
    assert not again.start(control)
    with VdpaManagement() as vdpa:
        vdpa.add("disk0")
        assert read_direct(node_of("disk0"), 0, 4096) == b"l" * 4096
        vdpa.delete("disk0")
    again.close(destroy=True)
    control.close()
