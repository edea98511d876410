"""Spec section "vhost-vdpa"."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterable, Iterator

import pytest

from vduse import _native
from vduse.bus.errors import DeviceBusy, DeviceRefused, NoDriver
from vduse.bus.iotlb import Mapping
from vduse.bus.vdpa import VdpaDevice
from vduse.bus.vhost_file import BACKEND_FEATURES, VhostVdpaFile
from vduse.bus.vhost_vdpa import VhostVdpa
from vduse.control.features import Feature, Status

ALL = 2**64 - 1


class FakeVdpa:
    """Records what a driver does to it."""

    name = "vd0"
    nvqs = 2
    has_groups = True
    max_iotlb_entries: int | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.status = 0
        self.driver_features = 0
        #: Statuses, and "map".
        self.refuses: set[int | str] = set()
        self.maps: list[list[Mapping]] = []
        self.state: tuple[int, ...] = (0,)
        self.lines = [_native.VqLine() for _ in range(self.nvqs)]
        self.config_cb: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: self.calls.append((name, *args))

    def reset(self) -> None:
        self.calls.append(("reset",))
        self.status = 0

    def set_status(self, status: int) -> None:
        if status in self.refuses:
            raise DeviceRefused("no")
        self.status = status

    def get_status(self) -> int:
        return self.status

    def get_driver_features(self) -> int:
        return self.driver_features

    def get_config_size(self) -> int:
        return 60

    def get_config(self, offset: int, length: int) -> bytes:
        return bytes(length)

    def get_vq_num_max(self) -> int:
        return 64

    def get_vq_state(self, index: int) -> tuple[int, ...]:
        return self.state

    def kick_vq(self, index: int) -> None:
        self.calls.append(("kick_vq", index))

    def vq_line(self, index: int) -> _native.VqLine:
        return self.lines[index]

    def set_config_cb(self, callback: Callable[[], None] | None) -> None:
        self.config_cb = callback

    def set_map(self, mappings: Iterable[Mapping], asid: int = 0) -> None:
        if "map" in self.refuses:
            raise DeviceRefused("no")
        self.maps.append(list(mappings))


@pytest.fixture
def relay() -> Iterator[_native.KickRelay]:
    made = _native.KickRelay()
    yield made
    made.close()


@pytest.fixture
def vdpa() -> FakeVdpa:
    return FakeVdpa()


@pytest.fixture
def vhost(vdpa: FakeVdpa, relay: _native.KickRelay) -> VhostVdpa:
    device: VdpaDevice = vdpa  # type: ignore[assignment]  # the rest is in __getattr__
    return VhostVdpa(device, relay)


@pytest.fixture
def opened(vhost: VhostVdpa) -> VhostVdpaFile:
    return vhost.open()


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 1 << 20)
    yield fd
    os.close(fd)


def fails(call: Callable[..., object], *args: object) -> int | None:
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno


def test_open_resets_and_is_ebusy_if_open(vhost: VhostVdpa, vdpa: FakeVdpa) -> None:
    opened = vhost.open()
    assert vdpa.calls == [("reset",)]
    with pytest.raises(DeviceBusy):
        vhost.open()
    assert vhost.busy
    opened.close()
    opened.close()
    assert vdpa.calls[1:] == [("reset",), ("clear_map",)]
    vhost.open()


def test_an_interrupted_close_leaves_nobody_in_it(
    vhost: VhostVdpa, vdpa: FakeVdpa, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = vhost.open()

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vdpa, "reset", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened.close()
    assert not vhost.busy
    vhost.open().close()


@pytest.mark.parametrize("value", [-2, 2**64])
def test_values_of_more_than_64_bits_are_einval(opened: VhostVdpaFile, value: int) -> None:
    """They would fail in the structs that answer the device's ioctls."""
    assert fails(opened.set_features, value) == errno.EINVAL
    assert fails(opened.set_vring_addr, 0, value, 0, 0) == errno.EINVAL
    assert fails(opened.set_vring_addr, 0, 0, 0, value) == errno.EINVAL
    assert fails(opened.set_vring_base, 0, value) == errno.EINVAL


def test_after_unbind_nobody_opens(vhost: VhostVdpa) -> None:
    opened = vhost.open()
    vhost.remove()
    assert fails(opened.get_status) == errno.EBADF
    with pytest.raises(NoDriver):
        vhost.open()


class TestStatus:
    def test_bits_are_only_added(self, opened: VhostVdpaFile, vdpa: FakeVdpa) -> None:
        opened.set_status(3)
        assert fails(opened.set_status, 1) == errno.EINVAL
        assert fails(opened.set_status, 0x100) == errno.EINVAL
        opened.set_status(0)
        assert opened.get_status() == 0

    def test_a_refused_status_is_read_back(self, opened: VhostVdpaFile, vdpa: FakeVdpa) -> None:
        vdpa.refuses.add(0xB)
        opened.set_status(3)
        opened.set_status(0xB)
        assert opened.get_status() == 3

    def test_features_are_settled_at_features_ok(self, opened: VhostVdpaFile) -> None:
        opened.set_features(1)
        opened.set_status(int(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK))
        assert fails(opened.set_features, 1) == errno.EBUSY

    def test_backend_features(self, opened: VhostVdpaFile) -> None:
        assert opened.get_backend_features() == BACKEND_FEATURES == 0xE
        opened.set_backend_features(0xE)
        assert fails(opened.set_backend_features, 1 << 4) == errno.EOPNOTSUPP  # SUSPEND

    def test_set_group_asid_is_ebusy_under_driver_ok(self, opened: VhostVdpaFile) -> None:
        opened.set_group_asid(0, 0)
        opened.set_status(0xF)
        assert fails(opened.set_group_asid, 0, 0) == errno.EBUSY


class TestConfig:
    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 0), (61, 1), (60, 1), (59, 2), (0, 61), (-1, 1)]
    )
    def test_range(self, opened: VhostVdpaFile, offset: int, length: int) -> None:
        assert fails(opened.get_config, offset, length) == errno.EINVAL
        assert fails(opened.set_config, offset, bytes(length)) == errno.EINVAL

    def test_config_call_is_signalled(self, opened: VhostVdpaFile, vdpa: FakeVdpa) -> None:
        fd = os.eventfd(0)
        opened.set_config_call(fd)
        assert vdpa.config_cb is not None
        vdpa.config_cb()
        assert os.eventfd_read(fd) == 1
        os.eventfd_write(fd, ALL - 1)
        vdpa.config_cb()  # full and once blocking: it never waits
        opened.set_config_call(-1)
        assert vdpa.config_cb is None
        os.close(fd)


class TestVring:
    @pytest.mark.parametrize("call", ["set_vring_enable", "set_vring_base", "set_vring_num"])
    def test_index_is_enobufs(self, opened: VhostVdpaFile, call: str) -> None:
        assert fails(getattr(opened, call), 2, 1) == errno.ENOBUFS

    @pytest.mark.parametrize("num", [0, 3, 0x10000])
    def test_num_is_a_power_of_two(self, opened: VhostVdpaFile, num: int) -> None:
        assert fails(opened.set_vring_num, 0, num) == errno.EINVAL

    def test_num_is_at_most_the_devices(self, opened: VhostVdpaFile) -> None:
        assert fails(opened.set_vring_num, 0, 128) == errno.EINVAL
        opened.set_vring_num(0, 64)

    def test_addresses_are_aligned(self, opened: VhostVdpaFile) -> None:
        assert fails(opened.set_vring_addr, 0, 0, 1, 0) == errno.EINVAL
        assert fails(opened.set_vring_addr, 0, 0, 0, 2) == errno.EINVAL
        opened.set_vring_addr(0, 1, 2, 4)

    def test_split_base_is_the_avail_index(self, opened: VhostVdpaFile, vdpa: FakeVdpa) -> None:
        opened.set_vring_base(1, 0xABCD)
        assert ("set_vq_state", 1, (0xABCD,)) in vdpa.calls
        assert fails(opened.set_vring_base, 1, 0x10000) == errno.EINVAL
        vdpa.state = (7,)
        assert opened.get_vring_base(1) == 7

    def test_packed_base_holds_indices_and_wraps(
        self, opened: VhostVdpaFile, vdpa: FakeVdpa
    ) -> None:
        vdpa.driver_features = Feature.RING_PACKED
        opened.set_vring_base(0, 0x0002_8005)
        assert ("set_vq_state", 0, (5, 1, 2, 0)) in vdpa.calls
        vdpa.state = (5, 1, 2, 0)
        assert opened.get_vring_base(0) == 0x0002_8005

    def test_kick_eventfd_is_watched_and_not_read(
        self, opened: VhostVdpaFile, vdpa: FakeVdpa
    ) -> None:
        fd, device = os.eventfd(1), os.eventfd(0)
        vdpa.lines[1].set_kickfd(device)
        opened.set_vring_kick(1, fd)
        assert select.select([device], [], [], 30)[0], "it was signalled before it was watched"
        assert os.eventfd_read(device) == 1
        os.eventfd_write(fd, 1)
        assert select.select([device], [], [], 30)[0]
        assert os.eventfd_read(fd) == 2
        opened.set_vring_kick(1, -1)
        os.close(fd)
        os.close(device)

    def test_a_kick_fd_that_cannot_be_watched(self, opened: VhostVdpaFile, memory: int) -> None:
        assert fails(opened.set_vring_kick, 0, memory) == errno.EINVAL
        assert fails(opened.set_vring_kick, 0, 1 << 20) == errno.EBADF


class TestIotlb:
    def test_each_piece_replaces_the_whole(
        self, opened: VhostVdpaFile, vdpa: FakeVdpa, memory: int
    ) -> None:
        opened.iotlb_update(0x3000, 0x1000, memory, 0x1000, 3)
        opened.iotlb_update(0x1000, 0x1000, memory, 0, 1)
        found = [[(m.start, m.last, m.offset, m.perm) for m in each] for each in vdpa.maps]
        assert found == [
            [(0x3000, 0x3FFF, 0x1000, 3)],
            [(0x1000, 0x1FFF, 0, 1), (0x3000, 0x3FFF, 0x1000, 3)],
        ]

    def test_overlap_is_efault(self, opened: VhostVdpaFile, vdpa: FakeVdpa, memory: int) -> None:
        opened.iotlb_update(0x1000, 0x1000, memory, 0, 3)
        assert fails(opened.iotlb_update, 0x1FFF, 1, memory, 0, 3) == errno.EFAULT
        assert fails(opened.iotlb_update, 0, ALL, memory, 0, 3) == errno.EFAULT
        assert len(vdpa.maps) == 1

    def test_a_batch_is_one_update(
        self, opened: VhostVdpaFile, vdpa: FakeVdpa, memory: int
    ) -> None:
        opened.iotlb_batch_begin()
        for iova in range(0x1000, 0x5000, 0x1000):
            opened.iotlb_update(iova, 0x1000, memory, iova, 3)
        opened.iotlb_invalidate(0x2000, 0x1000)
        assert vdpa.maps == []
        opened.iotlb_batch_end()
        assert [mapping.start for mapping in vdpa.maps[0]] == [0x1000, 0x3000, 0x4000]
        opened.iotlb_batch_end()
        assert len(vdpa.maps) == 1

    def test_invalidate_takes_every_overlap(
        self, opened: VhostVdpaFile, vdpa: FakeVdpa, memory: int
    ) -> None:
        opened.iotlb_update(0x1000, 0x1000, memory, 0, 3)
        opened.iotlb_update(0x2000, 0x1000, memory, 0, 3)
        opened.iotlb_invalidate(0x1800, 0x1000)
        assert vdpa.maps[-1] == []

    def test_a_refused_update_is_undone(
        self, opened: VhostVdpaFile, vdpa: FakeVdpa, memory: int
    ) -> None:
        vdpa.refuses.add("map")
        assert fails(opened.iotlb_update, 0x1000, 0x1000, memory, 0, 3) == errno.EFAULT
        vdpa.refuses.clear()
        opened.iotlb_update(0x1000, 0x1000, memory, 0, 3)

    def test_a_limit_of_entries(self, opened: VhostVdpaFile, vdpa: FakeVdpa, memory: int) -> None:
        vdpa.max_iotlb_entries = 2
        for iova in (0x1000, 0x2000):
            opened.iotlb_update(iova, 0x1000, memory, 0, 3)
        assert fails(opened.iotlb_update, 0x3000, 0x1000, memory, 0, 3) == errno.EFAULT
        opened.iotlb_invalidate(0x1000, 1)
        opened.iotlb_update(0x3000, 0x1000, memory, 0, 3)

    def test_a_refusal_of_what_nothing_is_told_of_is_survived(
        self, opened: VhostVdpaFile, vdpa: FakeVdpa, memory: int
    ) -> None:
        opened.iotlb_batch_begin()
        opened.iotlb_update(0x1000, 0x1000, memory, 0, 3)
        vdpa.refuses.add("map")
        opened.iotlb_batch_end()
        opened.iotlb_invalidate(0x1000, 0x1000)

    @pytest.mark.parametrize(
        ("iova", "size", "perm", "asid", "expected"),
        [
            (0, 0, 3, 0, errno.EINVAL),
            (0, 4096, 0, 0, errno.EINVAL),
            (0, 4096, 4, 0, errno.EINVAL),
            (ALL, 2, 3, 0, errno.EFAULT),
            (0, 4096, 3, 1, errno.EFAULT),
        ],
    )
    def test_what_makes_no_sense(
        self,
        opened: VhostVdpaFile,
        memory: int,
        iova: int,
        size: int,
        perm: int,
        asid: int,
        expected: int,
    ) -> None:
        assert fails(opened.iotlb_update, iova, size, memory, 0, perm, asid) == expected

    def test_what_cannot_be_shared_is_einval(self, opened: VhostVdpaFile, memory: int) -> None:
        read_end, write_end = os.pipe()
        assert fails(opened.iotlb_update, 0, 4096, read_end, 0, 3) == errno.EINVAL
        assert fails(opened.iotlb_update, 0, 4096, memory, 1 << 20, 3) == errno.EINVAL
        assert fails(opened.iotlb_update, 0, 4096, -1, 0, 3) == errno.EBADF
        read_only = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
        assert fails(opened.iotlb_update, 0, 4096, read_only, 0, 3) == errno.EINVAL
        opened.iotlb_update(0, 4096, read_only, 0, 1)
        for fd in (read_end, write_end, read_only):
            os.close(fd)

    def test_reset_ends_a_batch(self, opened: VhostVdpaFile, vdpa: FakeVdpa, memory: int) -> None:
        opened.iotlb_batch_begin()
        opened.set_status(0)
        opened.iotlb_update(0, 4096, memory, 0, 3)
        assert len(vdpa.maps) == 1
