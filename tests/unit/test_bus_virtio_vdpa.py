"""Spec section "Status, reset, attach": the virtio_vdpa bus driver's probe and removal."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.raw_device import Caller, RawDevice, blk_config, ok
from vduse import _native
from vduse.bus.errors import DeviceRefused, DeviceTimedOut, FeaturesRefused, NoDriver
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    DevSetConfig,
    Ioctl,
    SetStatus,
    VqInfo,
    unpack_u64,
)
from vduse.control.features import BlkFeature, DeviceId, Feature
from vduse.framework import Framework, control_node

BASE = Feature.VERSION_1 | Feature.ACCESS_PLATFORM
PROBE = [0, 1, 3, 0xB, 0xF]


class FakeDriver:
    """In the place of the native virtio-blk driver."""

    made: list[FakeDriver]

    def __init__(
        self,
        dma: _native.Domain,
        features: int,
        config: bytes,
        queue_sizes: list[int],
        lines: list[_native.VqLine],
    ) -> None:
        self.features, self.config, self.queue_sizes = features, config, queue_sizes
        assert len(lines) == len(queue_sizes)
        self.stopped: int | None = None
        self.started = False
        self.configured = threading.Event()
        self.steps: list[str] = []
        FakeDriver.made.append(self)

    @property
    def size(self) -> int:
        return int.from_bytes(self.config[:8], "little") * 512

    def areas(self, index: int) -> tuple[int, int, int]:
        return 0x1000 * index + 0x10000, 0x1000 * index + 0x20000, 0x1000 * index + 0x30000

    def start(self) -> None:
        self.started = True

    def stop(self, errno: int) -> None:
        self.stopped = errno

    def set_config(self, config: bytes) -> None:
        self.config = config
        self.configured.set()

    def hold(self, submissions: bool, completions: bool) -> None:
        self.steps.append("hold" if submissions and completions else "go on")

    def renew(self) -> None:
        self.steps.append("renew")


@pytest.fixture(autouse=True)
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver.made = []
    monkeypatch.setattr(_native, "BlkDriver", FakeDriver)


@pytest.fixture
def framework() -> Iterator[Framework]:
    with Framework(bounce_size=1 << 20, device_ids=[DeviceId.RNG]) as made:
        yield made


class Devices:
    """Makes devices and closes them."""

    def __init__(self, framework: Framework) -> None:
        self.control = Caller(framework.control())
        self.made: list[RawDevice] = []

    def make(self, size: int = 64, **changes: Any) -> RawDevice:
        config: DevConfig = blk_config(**changes)
        device = RawDevice(self.control, config)
        device.set_up_queues(size)
        self.made.append(device)
        return device


@pytest.fixture
def devices(framework: Framework) -> Iterator[Devices]:
    made = Devices(framework)
    yield made
    for device in made.made:
        device.close()
    made.control.close()


def statuses(device: RawDevice) -> list[int]:
    return [message.status for message in device.seen if isinstance(message, SetStatus)]


def vq_info(device: RawDevice, index: int) -> VqInfo:
    return VqInfo.unpack(device.calls.call(Ioctl.VQ_GET_INFO, VqInfo(index).pack())[0])


def test_probe_sends_0_1_3_b_f(framework: Framework, devices: Devices) -> None:
    device = devices.make()
    framework.dev_add("vd0")
    assert statuses(device) == PROBE
    assert framework.bus.devices == {"vd0": "virtio_vdpa"}
    assert FakeDriver.made[0].started


def test_queues_are_ready_before_driver_ok(framework: Framework, devices: Devices) -> None:
    device = devices.make(queues=2)
    seen: list[VqInfo] = []

    def reply(request: DevRequest) -> DevResponse:
        if request.message == SetStatus(0xF):
            seen.append(vq_info(device, 0))
        return DevResponse(request.request_id)

    device.reply = reply
    framework.dev_add("vd0")
    assert seen == [VqInfo(0, 64, 0x10000, 0x20000, 0x30000, ready=True)]
    assert not vq_info(device, 1).ready  # no MQ: one queue


def test_features_are_those_both_know(framework: Framework, devices: Devices) -> None:
    offered = BASE | BlkFeature.FLUSH | BlkFeature.LIFETIME | Feature.IN_ORDER
    device = devices.make(features=offered)
    framework.dev_add("vd0")
    features = unpack_u64(device.calls.call(Ioctl.DEV_GET_FEATURES)[0])
    assert features == BASE | BlkFeature.FLUSH == FakeDriver.made[0].features


def test_mq_uses_num_queues_at_most_what_there_are(framework: Framework, devices: Devices) -> None:
    config = bytearray(60)
    config[34:36] = (8).to_bytes(2, "little")
    devices.make(queues=3, features=BASE | BlkFeature.MQ, config=bytes(config))
    framework.dev_add("vd0")
    assert FakeDriver.made[0].queue_sizes == [64, 64, 64]


@pytest.mark.parametrize(
    ("features", "size", "expected"),
    [(BASE, 100, 64), (BASE | Feature.RING_PACKED, 100, 100), (BASE, 1, 1)],
    ids=["split", "packed", "one"],
)
def test_split_queues_are_a_power_of_two_long(
    framework: Framework, devices: Devices, features: int, size: int, expected: int
) -> None:
    device = devices.make(size, features=features)
    framework.dev_add("vd0")
    assert FakeDriver.made[0].queue_sizes == [expected]
    state = vq_info(device, 0).state
    assert state == (bytes([1, 0, 0, 0, 1, 0, 0, 0]) if features != BASE else bytes(8))


def test_a_queue_that_the_device_took_away_is_einval(
    framework: Framework, devices: Devices
) -> None:
    device = devices.make()

    def without_queue(request: DevRequest) -> DevResponse:
        if request.message == SetStatus(1):
            device.set_up_queues(0)
        return ok(request)

    device.reply = without_queue
    with pytest.raises(OSError, match="sizes") as caught:
        framework.dev_add("vd0")
    assert caught.value.errno == errno.EINVAL


def test_an_older_config_is_never_stored_last(
    framework: Framework, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver looks at its start, and a config interrupt makes it look on another thread."""
    device = devices.make()
    asked: list[int] = []
    set_config = FakeDriver.set_config

    def slow(driver: FakeDriver, config: bytes) -> None:
        asked.append(1)
        if len(asked) == 1:  # the look at the start has read; now the device resizes
            resize = DevSetConfig(0, (4096).to_bytes(8, "little"))
            device.calls.call(Ioctl.DEV_SET_CONFIG, resize.pack())
            device.calls.call(Ioctl.DEV_INJECT_CONFIG_IRQ)
            second.wait(0.2)  # as far as the other thread gets
        set_config(driver, config)
        if len(asked) == 2:
            second.set()

    second = threading.Event()
    monkeypatch.setattr(FakeDriver, "set_config", slow)
    framework.dev_add("vd0")
    assert second.wait(60)
    assert FakeDriver.made[0].size == 4096 * 512


@pytest.mark.parametrize(
    ("refused", "sent", "error"),
    [(0xB, [0, 1, 3, 0xB, 0x83], FeaturesRefused), (0xF, [*PROBE, 0xF, 0x8B], DeviceRefused)],
)
def test_a_failure_adds_0x80(
    framework: Framework, devices: Devices, refused: int, sent: list[int], error: type[OSError]
) -> None:
    """FEATURES_OK refused, or DRIVER_OK twice."""
    device = devices.make()
    device.reply = lambda request: DevResponse(
        request.request_id, int(request.message == SetStatus(refused))
    )
    with pytest.raises(error):
        framework.dev_add("vd0")
    assert statuses(device) == sent
    assert framework.bus.devices == {}
    assert not vq_info(device, 0).ready


@pytest.mark.parametrize(("refused", "sent"), [(0, PROBE), (1, [0, 1, 2, 0xA, 0xE])])
def test_other_refused_statuses_are_no_failure(
    framework: Framework, devices: Devices, refused: int, sent: list[int]
) -> None:
    device = devices.make()
    device.reply = lambda request: DevResponse(
        request.request_id, int(request.message == SetStatus(refused))
    )
    framework.dev_add("vd0")
    assert statuses(device) == sent


def test_a_device_without_version_1_is_given_up(framework: Framework, devices: Devices) -> None:
    device = devices.make(features=Feature.ACCESS_PLATFORM)
    with pytest.raises(FeaturesRefused, match="VERSION_1"):
        framework.dev_add("vd0")
    assert statuses(device) == [0, 1, 3, 0x83]


def test_no_class_driver_is_a_clear_error(
    framework: Framework, devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_node, "has_capability", lambda pid, cap: True)
    device = devices.make(name="net0", device_id=DeviceId.NET)
    with pytest.raises(NoDriver, match="bind it to vhost_vdpa") as caught:
        framework.dev_add("net0")
    assert caught.value.errno == errno.ENODEV
    assert device.seen == []
    framework.dev_add("net0", driver="vhost_vdpa")


def test_a_config_interrupt_resizes_the_disk(framework: Framework, devices: Devices) -> None:
    device = devices.make()
    framework.dev_add("vd0")
    driver = FakeDriver.made[0]
    assert driver.size == 1 << 20
    driver.configured.clear()
    device.calls.call(Ioctl.DEV_SET_CONFIG, DevSetConfig(0, (4096).to_bytes(8, "little")).pack())
    device.calls.call(Ioctl.DEV_INJECT_CONFIG_IRQ)
    assert driver.configured.wait(60)
    assert framework.disk("vd0").size == 2 << 20


def test_dev_del_resets_then_stops_with_enodev(framework: Framework, devices: Devices) -> None:
    device = devices.make()
    framework.dev_add("vd0")
    framework.dev_del("vd0")
    assert statuses(device) == [*PROBE, 0, 1]
    assert FakeDriver.made[0].stopped == errno.ENODEV
    assert framework.bus.devices == {}


def test_dev_del_of_a_dead_device_returns_after_msg_timeout(
    framework: Framework, devices: Devices
) -> None:
    device = devices.make()
    framework.dev_add("vd0")
    device.close()
    framework.device("vd0").msg_timeout = 0.01
    framework.dev_del("vd0")
    assert framework.device("vd0").messages.broken
    with pytest.raises(DeviceTimedOut):
        framework.dev_add("vd0")
    devices.control.call(Ioctl.DESTROY_DEV, b"vd0\0")


def test_rebind(framework: Framework, devices: Devices) -> None:
    device = devices.make()
    framework.dev_add("vd0")
    framework.bus.bind("vd0", "vhost_vdpa")
    assert FakeDriver.made[0].stopped == errno.ENODEV
    with pytest.raises(NoDriver, match="virtio_vdpa"):
        framework.disk("vd0")
    framework.bus.vhost("vd0").open().close()
    framework.bus.bind("vd0", "virtio_vdpa")
    framework.bus.unbind("vd0")
    assert framework.bus.devices == {"vd0": None}
    assert statuses(device) == [*PROBE, 0, 1, 0, 0, *PROBE, 0, 1]
    with pytest.raises(NoDriver, match="choose one of"):
        framework.bus.bind("vd0", "virtio_pci")


def test_a_restart_resets_and_probes_under_the_driver(
    framework: Framework, devices: Devices
) -> None:
    device = devices.make()
    framework.dev_add("vd0")
    (driver,) = FakeDriver.made

    def reply(request: DevRequest) -> DevResponse:
        driver.steps.append(str(request.message))
        return ok(request)

    device.reply = reply
    framework.bus.restart("vd0")
    assert statuses(device) == [*PROBE, *PROBE]
    assert [step for step in driver.steps if not step.startswith("SetStatus")] == [
        "hold",
        "renew",
        "go on",
    ]
    assert driver.steps.index("hold") < driver.steps.index(str(SetStatus(0)))
    assert driver.steps.index(str(SetStatus(0xB))) < driver.steps.index("renew")
    assert driver.steps.index(str(SetStatus(0xF))) < driver.steps.index("go on")
    assert vq_info(device, 0) == VqInfo(0, 64, 0x10000, 0x20000, 0x30000, ready=True)
    assert (driver.stopped, len(FakeDriver.made)) == (None, 1)
    # Config interrupts reach it as before.
    driver.configured.clear()
    device.calls.call(Ioctl.DEV_INJECT_CONFIG_IRQ)
    assert driver.configured.wait(60)


def test_a_device_that_does_not_come_back_from_a_restart_is_eio(
    framework: Framework, devices: Devices
) -> None:
    device = devices.make()
    framework.dev_add("vd0")
    device.reply = lambda request: DevResponse(
        request.request_id, int(request.message == SetStatus(0xB))
    )
    with pytest.raises(FeaturesRefused):
        framework.bus.restart("vd0")
    assert statuses(device)[len(PROBE) :] == [0, 1, 3, 0xB, 0x83]
    assert FakeDriver.made[0].stopped == errno.EIO


def test_a_driver_that_bears_no_restart_says_so(framework: Framework, devices: Devices) -> None:
    device = devices.make(device_id=DeviceId.RNG)
    framework.dev_add("vd0")
    with pytest.raises(OSError, match="VirtioRng bears no reset") as caught:
        framework.bus.restart("vd0")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert statuses(device) == PROBE
