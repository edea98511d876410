"""The kernel's channel as far as it goes without the kernel; the rest is in tests/kernel."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vduse import _native
from vduse.channel import kernel
from vduse.channel.base import EXT_INFLIGHT, Channel, ControlPort
from vduse.channel.kernel import KernelChannel, KernelControl
from vduse.control.abi import DevConfig, IovaUmem

MIB = 1 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory whose control node is /dev/null: every ioctl of it is ENOTTY."""
    (tmp_path / "control").symlink_to("/dev/null")
    (tmp_path / "disk0").symlink_to("/dev/null")
    return tmp_path


@pytest.fixture(params=[0, 1])
def channel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KernelChannel]:
    node = os.open("/dev/null", os.O_RDWR)
    channel = KernelChannel("disk0", node, request.param, records=str(tmp_path / "run"))
    yield channel
    channel.close()


def test_it_is_both_ports(directory: Path) -> None:
    control: ControlPort = KernelControl(str(directory))
    channel: Channel = control.open("disk0")
    assert channel.extensions == {EXT_INFLIGHT}
    channel.close()
    control.close()


def test_no_module_says_what_to_do(tmp_path: Path) -> None:
    control = KernelControl(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"control: No such file.*modprobe vduse"):
        control.set_api_version(0)
    control.close()


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files that os.open refuses; root may open anything."""
    denied: set[str] = set()
    os_open = os.open

    def refuse(path: str, flags: int) -> int:
        if os.path.basename(path) in denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return os_open(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    return denied


def test_no_permission_says_what_to_do(directory: Path, denied: set[str]) -> None:
    control = KernelControl(str(directory))
    denied |= {"control", "disk0"}
    with pytest.raises(PermissionError, match=r"disk0: Permission denied: run as root.*udev"):
        control.open("disk0")
    with pytest.raises(PermissionError, match=r"control: Permission denied: run as root.*udev"):
        control.destroy_dev("disk0")
    control.close()


def test_device_node_is_enough(directory: Path, denied: set[str]) -> None:
    control = KernelControl(str(directory))
    denied.add("control")
    control.open("disk0").close()
    control.close()


def test_node_of_a_new_device_is_waited_for(
    directory: Path, denied: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """udev's rule hands it over a moment after the device is there."""
    monkeypatch.setattr(kernel, "_ioctl", lambda *_: (0, b""))
    monkeypatch.setattr("time.sleep", lambda _: denied.clear())
    control = KernelControl(str(directory))
    denied.add("disk0")
    control.create_dev(DevConfig("disk0", 0, 2, 0, 1, 4096))
    control.open("disk0").close()
    assert not denied
    control.close()


def test_device_that_is_not_there(directory: Path) -> None:
    control = KernelControl(str(directory))
    with pytest.raises(FileNotFoundError, match=r"disk1: No such file or directory$"):
        control.open("disk1")
    control.close()


def test_kernels_errno_comes_back_from_the_control_node(directory: Path) -> None:
    control = KernelControl(str(directory))
    config = DevConfig("disk0", 0, 2, 0, 1, 4096, config=bytes(2000))
    for call in (
        control.get_api_version,
        lambda: control.set_api_version(1),
        lambda: control.create_dev(config),
        lambda: control.destroy_dev("disk0"),
    ):
        with pytest.raises(OSError) as failed:
            call()
        assert failed.value.errno == errno.ENOTTY
    control.close()
    control.close()


def test_kernels_errno_comes_back_from_a_device_node(channel: KernelChannel) -> None:
    umem = IovaUmem(uaddr=0, iova=0, size=0)
    for call in (
        channel.dev_get_features,
        lambda: channel.dev_set_config(0, b"x"),
        channel.dev_inject_config_irq,
        lambda: channel.vq_setup(0, 128),
        lambda: channel.vq_get_info(0),
        lambda: channel.vq_setup_kickfd(0, -1),
        lambda: channel.vq_inject_irq(0),
        lambda: channel.iotlb_get_fd(0, 1),
        lambda: channel.iotlb_get_info(0, 1),
        lambda: channel.iotlb_reg_umem(umem),
        lambda: channel.iotlb_dereg_umem(umem),
        lambda: channel.vq_get_callfd(0),
    ):
        with pytest.raises(OSError) as failed:
            call()
        assert failed.value.errno == errno.ENOTTY


def test_closed_channel_is_a_value_error(channel: KernelChannel) -> None:
    resolver = channel.resolver()
    channel.close()
    channel.close()
    for use in (channel.fileno, channel.receive, channel.dev_get_features, resolver.fileno):
        with pytest.raises(ValueError, match="device node is closed"):
            use()


def test_fd_that_is_none_is_refused() -> None:
    with pytest.raises(OSError) as refused:
        _native.KernelNode(-1, 0)
    assert refused.value.errno == errno.EBADF


@pytest.fixture
def pool() -> Iterator[_native.Pool]:
    pool = _native.Pool(1)
    yield pool
    pool.close()


def data_path(pool: _native.Pool, resolver: Any) -> _native.BlkDataPath:
    limits = {"capacity": MIB // 512, "seg_max": 16, "size_max": MIB}
    backend = _native.Backend.null(MIB)
    return _native.BlkDataPath(pool, backend, resolver, limits, b"")


def test_data_path_on_a_node_that_resolves_nothing(
    pool: _native.Pool, channel: KernelChannel
) -> None:
    """The kernel's ENOTTY fails the start of a queue, in words."""
    path = data_path(pool, channel.resolver())
    kickfd = os.eventfd(0)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)) as failed:
        path.start_queue(
            0,
            size=16,
            features=1 << 32 | 1 << 33,
            areas=(0x1000, 0x2000, 0x3000),
            state=(0,),
            kickfd=kickfd,
            callfd=-1,
            inflight=None,
        )
    assert failed.value.errno == errno.EFAULT
    os.close(kickfd)
    path.close()


def test_data_path_needs_an_open_node(pool: _native.Pool, channel: KernelChannel) -> None:
    channel.close()
    with pytest.raises(ValueError, match="device node is closed"):
        data_path(pool, channel.resolver())


def test_data_path_takes_nothing_else(pool: _native.Pool) -> None:
    with pytest.raises(TypeError, match="CallSocket"):
        data_path(pool, "resolver")


def test_a_node_that_is_a_socket_says_when_it_is_at_its_end(tmp_path: Path) -> None:
    """As under `vduse run`, when that has ended: it knows no ioctl any more."""
    node, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    node.setblocking(False)
    channel = KernelChannel("disk0", node.detach(), 0, records=str(tmp_path / "run"))
    assert channel.receive() is None
    other.close()
    with pytest.raises(ConnectionResetError, match="disk0: Inappropriate ioctl"):
        channel.receive()
    channel.close()
