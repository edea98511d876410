"""What of the vhost-vdpa driver needs no kernel; the rest: tests/contract on the kernels."""

from __future__ import annotations

import mmap
import os
import threading

import pytest

from tests.held import nothing_left
from vduse.vdpa.vhost import _MESSAGE, VhostVdpaDriver, _Ioctl, _SharedPages

#: As a C program prints the macros of linux/vhost.h.
NUMBERS = {
    "SET_FEATURES": 0x4008AF00,
    "SET_OWNER": 0x0000AF01,
    "SET_VRING_ADDR": 0x4028AF11,
    "GET_VRING_BASE": 0xC008AF12,
    "SET_VRING_KICK": 0x4008AF20,
    "GET_BACKEND_FEATURES": 0x8008AF26,
    "GET_DEVICE_ID": 0x8004AF70,
    "SET_STATUS": 0x4001AF72,
    "GET_CONFIG": 0x8008AF73,
    "GET_VRING_NUM": 0x8002AF76,
    "GET_IOVA_RANGE": 0x8010AF78,
    "GET_CONFIG_SIZE": 0x8004AF79,
    "GET_VRING_GROUP": 0xC008AF7B,
    "GET_VQS_COUNT": 0x8004AF80,
}


def test_ioctl_numbers() -> None:
    assert {name: _Ioctl[name].value for name in NUMBERS} == NUMBERS


def test_size_of_a_message() -> None:
    assert _MESSAGE.size == 72  # struct vhost_msg_v2


def test_no_node() -> None:
    with pytest.raises(FileNotFoundError):
        VhostVdpaDriver("/dev/vhost-vdpa-none")


def test_what_is_no_vhost_node_is_refused_and_closed() -> None:
    with nothing_left(), pytest.raises(OSError):
        VhostVdpaDriver("/dev/null")


def test_a_kick_eventfd_that_is_taken_away_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = object.__new__(VhostVdpaDriver)
    driver._lock = threading.Lock()
    driver._kicks = {}
    kicks = []

    def set_and_taken_away(index: int, fd: int) -> None:
        kicks.append(os.dup(fd))

    monkeypatch.setattr(driver, "set_vring_kick", set_and_taken_away)
    driver.kick(0)
    [kick] = kicks
    assert os.eventfd_read(kick) == 1
    os.close(kick)


def test_pages_are_shared_from_any_offset() -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 2 * mmap.PAGESIZE)
    os.pwrite(fd, b"here", 5000)
    pages = _SharedPages(fd, 5000, 4, mmap.PROT_READ)
    with open("/proc/self/mem", "rb") as memory:
        memory.seek(pages.address)
        assert memory.read(4) == b"here"
    pages.close()
    os.close(fd)
    with pytest.raises(OSError):
        _SharedPages(fd, 0, 4096, mmap.PROT_READ)
