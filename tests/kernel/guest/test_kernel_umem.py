"""Pages of the program's own in place of the kernel's bounce pages (VDUSE_IOTLB_REG_UMEM)."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.guest.bed import (
    MIB,
    errno_of,
    newest_api_version,
    node_of,
    on_the_bus,
    read_direct,
    rebind,
    run,
    set_msg_timeout,
    write_direct,
)
from tests.kernel.guest.test_kernel_memory import NEVER_MAPPED, Seen, offer_a_request_in
from tests.waiting import eventually
from vduse import _native
from vduse.backends.layers import delay
from vduse.channel.kernel import KernelControl
from vduse.control.abi import IovaUmem
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver
from vduse.vdpa.netlink import VdpaManagement

RINGS = [pytest.param(False, id="split"), pytest.param(True, id="packed")]
#: The kernel's bounce size.
BOUNCE = 64 * MIB


@pytest.fixture(scope="module", autouse=True)
def memlock(modules: None) -> Iterator[None]:
    """The bounce pages of two devices may be pinned."""
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (512 * MIB, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)


@pytest.fixture
def control() -> Iterator[Seen]:
    port = Seen()
    yield port
    port.close()


def pinned() -> int:
    """Bytes of this process's memory that are pinned."""
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith("VmPin:")]
    return int(line.split()[1]) * 1024


def write_and_read(path: str, length: int = 2 * MIB) -> None:
    data = os.urandom(length)
    write_direct(path, 4096, data)
    assert read_direct(path, 4096, length) == data


@pytest.mark.parametrize("packed", RINGS)
def test_requests_go_through_own_pages(backend: _native.Backend, packed: bool) -> None:
    for version in range(newest_api_version() + 1):
        port = Seen()
        device = BlkDevice(
            "disk0", backend, queues=2, packed=packed, api_version=version, umem=True
        )
        with on_the_bus(device, port) as path:
            write_and_read(path)
            assert pinned() == BOUNCE
            # Once a domain: nobody registers a second time.
            again = IovaUmem(uaddr=0, iova=0, size=BOUNCE)
            assert errno_of(port.channel.iotlb_reg_umem, again) == errno.EEXIST
            write_and_read(path)
        assert pinned() == 0
        port.close()


def test_own_pages_are_a_drivers_and_not_the_next_ones(
    control: Seen, backend: _native.Backend
) -> None:
    with on_the_bus(BlkDevice("disk0", backend, umem=True), control) as path:
        for _ in range(2):
            write_and_read(path)
            assert pinned() == BOUNCE
            rebind("disk0", BusDriver.VHOST_VDPA)
            assert pinned() == 0
            path = rebind("disk0", BusDriver.VIRTIO_VDPA)


def test_the_kernel_itself_keeps_a_registration_over_a_reset(
    control: Seen, backend: _native.Backend
) -> None:
    """Why the device gives it back by itself."""
    pages = mmap.mmap(-1, BOUNCE)
    address = ctypes.c_char.from_buffer(pages)
    umem = IovaUmem(uaddr=ctypes.addressof(address), iova=0, size=BOUNCE)
    with on_the_bus(BlkDevice("disk0", backend), control) as path:
        read_direct(path, 0, 4096)
        control.channel.iotlb_reg_umem(umem)
        rebind("disk0", BusDriver.VHOST_VDPA)
        assert pinned() == BOUNCE
        control.channel.iotlb_dereg_umem(umem)
        assert pinned() == 0
    del address
    pages.close()


def test_too_small_a_limit_is_told_and_does_no_harm(
    control: Seen, backend: _native.Backend, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * MIB, limits[1]))
    try:
        with (
            caplog.at_level(logging.WARNING),
            on_the_bus(BlkDevice("disk0", backend, umem=True), control) as path,
        ):
            write_and_read(path)
            assert pinned() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
    [line] = [line for line in caplog.messages if "bounce pages" in line]
    assert line.startswith("disk0: 64 MiB of own bounce pages refused: RLIMIT_MEMLOCK is 8 MiB")


def test_a_page_that_the_driver_never_used_is_no_fault(
    control: Seen, backend: _native.Backend
) -> None:
    """The kernel's own would be SIGBUS (test_bounce_page_never_mapped_ends_one_device). The
    request is nonsense and refused, which only its driver sees."""
    device = BlkDevice("disk0", backend, umem=True)
    with on_the_bus(device, control) as path:
        write_and_read(path)
        before = device.stats()
        assert before is not None
        offer_a_request_in(NEVER_MAPPED, control)

        def is_refused() -> bool:
            stats = device.stats()
            return stats is not None and stats["requests"] > before["requests"]

        eventually(is_refused, "the request's end")
        assert device.fault is None


def test_a_driver_that_leaves_in_the_middle(control: Seen, backend: _native.Backend) -> None:
    slow = delay(backend, read=0.02, write=0.02)
    with on_the_bus(BlkDevice("disk0", slow, umem=True), control) as path:
        data = os.urandom(MIB)
        dd = ["dd", f"if={path}", "of=/dev/null", "bs=64k", "iflag=direct"]
        with subprocess.Popen(dd, stderr=subprocess.DEVNULL) as reader:
            eventually(lambda: pinned() == BOUNCE, "own pages")
            rebind("disk0", BusDriver.VHOST_VDPA)
            assert pinned() == 0
            reader.wait()
        path = rebind("disk0", BusDriver.VIRTIO_VDPA)
        write_direct(path, 0, data)
        assert read_direct(path, 0, MIB) == data
    slow.close()


PROGRAM = """
import resource, signal, sys
from vduse import _native
from vduse.backends.layers import delay
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice
device = BlkDevice("disk0", _native.Backend.file(sys.argv[1]), umem=True)
device.start(KernelControl())
print("ready", flush=True)
signal.pause()
"""


def test_after_a_killed_program_another_serves(tmp_path: Path) -> None:
    """The pages went with the program; the next one has its own."""
    image = tmp_path / "image"
    image.write_bytes(bytes(16 * MIB))
    control = KernelControl()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(image)], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        with VdpaManagement() as vdpa:
            vdpa.add("disk0")
            write_direct(node_of("disk0"), 0, b"k" * 65536)
            program.send_signal(signal.SIGKILL)
            program.wait()
            # The kernel resets the driver's side by itself once nobody answers.
            set_msg_timeout("disk0", 1)
            vdpa.delete("disk0")
    control.destroy_dev("disk0")
    backend = _native.Backend.file(str(image))
    with on_the_bus(BlkDevice("disk0", backend, umem=True), control) as path:
        assert read_direct(path, 0, 65536) == b"k" * 65536
        assert pinned() == BOUNCE
    control.close()
    backend.close()


def test_a_disk_past_the_page_cache(control: Seen) -> None:
    run("modprobe", "brd", "rd_nr=1", "rd_size=32768")
    backend = _native.Backend.file("/dev/ram0", direct=True)
    with on_the_bus(BlkDevice("disk0", backend, umem=True), control) as path:
        write_and_read(path)
        # By the ring too, which not every kernel counts.
        assert pinned() >= BOUNCE
    assert pinned() == 0
    backend.close()
