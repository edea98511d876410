"""The kernel's channel: what each ioctl, read and write does on the kernel's own nodes."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.kernel.guest.bed import InThread, errno_of, newest_api_version, set_msg_timeout
from tests.waiting import eventually
from vduse.channel.base import EXT_INFLIGHT
from vduse.channel.kernel import KernelChannel, KernelControl
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    RequestResult,
    SetStatus,
    VqInfo,
)
from vduse.control.features import DeviceId, Feature
from vduse.vdpa.netlink import VdpaManagement

pytestmark = pytest.mark.usefixtures("modules")

NAME = "raw0"
VERSIONS = [0, 1]


def config(api_version: int = 0, **changes: Any) -> DevConfig:
    made = DevConfig(
        name=NAME,
        vendor_id=0x1AF4,
        device_id=DeviceId.BLOCK,
        features=int(Feature.VERSION_1 | Feature.ACCESS_PLATFORM),
        vq_num=2,
        vq_align=4096,
        config=bytes(64),
        ngroups=api_version,
        nas=api_version,
    )
    return replace(made, **changes)


@pytest.fixture(params=VERSIONS, ids=["v0", "v1"])
def channel(request: pytest.FixtureRequest, control: KernelControl) -> Iterator[KernelChannel]:
    """A device of two virtqueues of each API version; of version 0 where there is no other."""
    version = min(request.param, newest_api_version())
    control.set_api_version(version)
    control.create_dev(config(version))
    channel = control.open(NAME)
    for index in range(2):
        channel.vq_setup(index, 64)
    yield channel
    channel.close()
    control.destroy_dev(NAME)


def test_newest_api_version(control: KernelControl) -> None:
    assert control.get_api_version() == newest_api_version()


def test_unknown_api_version(control: KernelControl) -> None:
    assert errno_of(control.set_api_version, newest_api_version() + 1) == errno.EINVAL


def test_create_open_destroy(control: KernelControl) -> None:
    control.create_dev(config())
    assert os.path.exists(f"/dev/vduse/{NAME}")
    assert errno_of(control.create_dev, config()) == errno.EEXIST
    channel = control.open(NAME)
    assert not os.get_inheritable(channel.fileno())
    assert errno_of(control.open, NAME) == errno.EBUSY
    assert errno_of(control.destroy_dev, NAME) == errno.EBUSY
    channel.close()
    control.destroy_dev(NAME)
    assert errno_of(control.destroy_dev, NAME) == errno.EINVAL
    assert errno_of(control.open, NAME) == errno.ENOENT


def test_config_space_longer_than_a_small_ioctl(control: KernelControl) -> None:
    control.create_dev(config(config=bytes(4096)))
    channel = control.open(NAME)
    channel.dev_set_config(0, bytes(4096))
    assert errno_of(channel.dev_set_config, 1, bytes(4096)) == errno.EINVAL
    channel.close()
    control.destroy_dev(NAME)


def test_create_refuses_a_device_without_access_platform(control: KernelControl) -> None:
    features = int(Feature.VERSION_1)
    assert errno_of(control.create_dev, config(features=features)) == errno.EINVAL


def test_before_a_driver_comes(channel: KernelChannel) -> None:
    assert channel.receive() is None
    assert channel.dev_get_features() == 0
    assert channel.vq_get_info(1) == VqInfo(1)
    assert errno_of(channel.vq_get_info, 2) == errno.EINVAL
    assert errno_of(channel.vq_setup, 2, 64) == errno.EINVAL
    assert errno_of(channel.dev_inject_config_irq) == errno.EINVAL
    assert errno_of(channel.vq_inject_irq, 0) == errno.EINVAL
    assert errno_of(channel.iotlb_get_fd, 0, 1) == errno.EINVAL
    assert errno_of(channel.iotlb_get_info, 0, 1) == errno.EINVAL
    assert errno_of(channel.dev_set_config, 64, b"x") == errno.EINVAL
    assert errno_of(channel.dev_set_config, 0, b"") == errno.EINVAL


def test_kick_eventfds(channel: KernelChannel) -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    channel.vq_setup_kickfd(0, fd)
    channel.vq_setup_kickfd(0, -1)
    os.close(fd)
    assert errno_of(channel.vq_setup_kickfd, 0, fd) == errno.EBADF
    assert errno_of(channel.vq_setup_kickfd, 2, -1) == errno.EINVAL


def test_extensions(channel: KernelChannel) -> None:
    assert channel.extensions == {EXT_INFLIGHT}
    assert errno_of(channel.vq_get_callfd, 0) == errno.ENOTTY


def test_answer_that_nobody_waits_for_is_dropped(channel: KernelChannel) -> None:
    channel.respond(DevResponse(4711))


def test_closed_for_the_next_opener_though_a_data_path_holds_it(control: KernelControl) -> None:
    control.create_dev(config())
    channel = control.open(NAME)
    resolver = channel.resolver()
    channel.close()
    with pytest.raises(ValueError, match="closed"):
        channel.vq_get_info(0)
    with pytest.raises(ValueError, match="closed"):
        resolver.fileno()
    control.open(NAME).close()
    control.destroy_dev(NAME)


def answer(channel: KernelChannel, result: RequestResult = RequestResult.OK) -> DevRequest:
    """Waits for the next message and answers it."""
    request = eventually(channel.receive, "message")
    channel.respond(DevResponse(request.request_id, result))
    return request


def test_a_driver_probes_and_finds_its_memory_by_fd(channel: KernelChannel) -> None:
    addition = InThread(lambda vdpa: vdpa.add(NAME))
    statuses: list[int] = []
    # A reset, then the steps of virtio 1.3, section 3.1.1.
    while not statuses or statuses[-1] != 0xF:
        message = answer(channel).message
        assert isinstance(message, SetStatus)
        statuses.append(message.status)
    assert statuses == [0, 1, 3, 0xB, 0xF]
    assert channel.dev_get_features() & Feature.ACCESS_PLATFORM

    info = channel.vq_get_info(0)
    assert info.ready and info.num == 64
    entry, fd = channel.iotlb_get_fd(info.desc_addr, info.desc_addr)
    assert not os.get_inheritable(fd)
    assert entry.start <= info.desc_addr <= entry.last
    assert (entry.offset, entry.perm) == (entry.start, 3)
    # The ring lies there: as many bytes as its descriptors take, all of them mapped.
    with mmap.mmap(fd, 4096, offset=entry.offset) as ring:
        assert ring[:16] == bytes(16)  # nothing was asked of a disk of no sectors
    os.close(fd)
    assert channel.iotlb_get_info(entry.start, entry.last).start == entry.start
    # The kernel stores a status when it has read the answer.
    eventually(lambda: injected(channel), "config interrupt")
    channel.vq_inject_irq(0)
    assert addition.result() is None
    leave(channel)


def injected(channel: KernelChannel) -> bool:
    try:
        channel.dev_inject_config_irq()
    except OSError as error:
        assert error.errno == errno.EINVAL
        return False
    return True


def leave(channel: KernelChannel) -> None:
    """Takes the device off the bus while its messages are answered."""
    deletion = InThread(lambda vdpa: vdpa.delete(NAME))

    def answered() -> bool:
        if request := channel.receive():
            channel.respond(DevResponse(request.request_id))
        return deletion.done

    eventually(answered, "device off the bus")
    assert deletion.result() is None


def test_a_silent_program_is_given_up_and_told_why(control: KernelControl) -> None:
    control.create_dev(config())
    channel = control.open(NAME)
    for index in range(2):
        channel.vq_setup(index, 64)
    set_msg_timeout(NAME, 1)
    addition = InThread(lambda vdpa: vdpa.add(NAME))
    request = eventually(channel.receive, "message")
    # It is on the bus; what failed is a driver's probe.
    assert addition.result() is None
    with pytest.raises(ConnectionAbortedError, match=f"{NAME}/msg_timeout"):
        channel.receive()
    channel.respond(DevResponse(request.request_id))
    assert errno_of(channel.vq_get_info, 0) == errno.EPERM
    # The way back that the error names.
    with VdpaManagement() as vdpa:
        vdpa.delete(NAME)
    channel.close()
    control.destroy_dev(NAME)
    control.create_dev(config())
    control.destroy_dev(NAME)
