"""The kernels have what everything else here stands on."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from vduse.control.abi import Ioctl

pytestmark = pytest.mark.needs("modprobe", "vdpa")


def modprobe(*words: str) -> None:
    subprocess.run(["modprobe", *words], check=True)


def test_kernel_is_the_one_asked_for(kernel: str) -> None:
    assert os.uname().release.startswith(f"{kernel}.")
    assert os.geteuid() == 0


def test_control_node_has_the_kernels_api_version(kernel: str) -> None:
    modprobe("vduse")
    node = os.open("/dev/vduse/control", os.O_RDWR)
    version = bytearray(8)
    fcntl.ioctl(node, Ioctl.GET_API_VERSION, version)
    os.close(node)
    assert struct.unpack("=Q", version) == ({"6.12": 0, "7.2": 1}[kernel],)


def test_vdpa_netlink_shows_vduse_as_a_management_device() -> None:
    modprobe("vduse")
    shown = subprocess.run(["vdpa", "-j", "mgmtdev", "show"], capture_output=True, check=True)
    devices = json.loads(shown.stdout)["mgmtdev"]
    assert "block" in devices["vduse"]["supported_classes"]


@pytest.mark.parametrize("name", ["virtio_vdpa", "vhost_vdpa"])
def test_bus_driver_is_on_the_vdpa_bus(name: str) -> None:
    modprobe(name)
    assert Path("/sys/bus/vdpa/drivers", name).is_dir()


def test_null_blk_makes_a_block_device() -> None:
    modprobe("null_blk", "nr_devices=1", "gb=1")
    assert stat.S_ISBLK(os.stat("/dev/nullb0").st_mode)
