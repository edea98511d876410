"""Queues that a driver sets up as they cannot be: the framework or the device refuses, and both go
on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.system.stage import VICTIM, LogWatch, Stage, nothing_left
from vduse.control.features import Feature, Status
from vduse.framework.vdpa_device import VdpaDevice
from vduse.testing.harness import blk_stack
from vduse.testing.rawdriver import BASE, RawDriver

_DESC, _DRIVER, _DEVICE = BASE, BASE + 0x100, BASE + 0x128
_MAPPED_END = BASE + (1 << 20)
_TOP = (1 << 64) - 64

both_formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@both_formats
@pytest.mark.parametrize("num", [0, 3, 24, 32, 1 << 15, 1 << 16, (1 << 16) - 1, 1 << 32])
def test_a_size_that_the_framework_refuses(stage: Stage, num: int, packed: bool) -> None:
    with nothing_left(stage), stage.raw(packed=packed) as raw:
        with pytest.raises(OSError) as error:
            raw.start(num=num)
        assert error.value.errno == errno.EINVAL
    stage.check_whole(packed=packed)


class Refused(NamedTuple):
    """Areas that the device refuses at DRIVER_OK, and why."""

    name: str
    message: str
    areas: tuple[int, int, int]


CASES = [
    Refused("descriptors nowhere", "no mapping at IOVA 0x0", (0, _DRIVER, _DEVICE)),
    Refused("driver area nowhere", "no mapping at IOVA 0x0", (_DESC, 0, _DEVICE)),
    Refused("device area nowhere", "no mapping at IOVA 0x0", (_DESC, _DRIVER, 0)),
    Refused(
        "descriptors half mapped",
        f"bad range: IOVA {_MAPPED_END - 16:#x}, 256 bytes",
        (_MAPPED_END - 16, _DRIVER, _DEVICE),
    ),
    Refused(
        "descriptors past 2^64",
        f"bad range: IOVA {_TOP:#x}, 256 bytes",
        (_TOP, _DRIVER, _DEVICE),
    ),
    Refused(
        "descriptors not on 16 bytes",
        "the descriptor area is too short or unaligned",
        (_DESC + 8, _DRIVER, _DEVICE),
    ),
]


@both_formats
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_areas_that_the_device_refuses(stage: Stage, case: Refused, packed: bool) -> None:
    _check_refused(stage, case.message, packed=packed, areas=case.areas)


@both_formats
@pytest.mark.parametrize("num", [32, 1 << 15])
def test_a_size_that_the_device_refuses(
    stage: Stage, num: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Linux before 6.12.111, which does not hold a driver to what the device said.
    monkeypatch.setattr(VdpaDevice, "get_vq_num_max", lambda _: 1 << 15)
    _check_refused(stage, f"size {num}, at most 16", packed=packed, num=num)


def _check_refused(
    stage: Stage,
    message: str,
    *,
    packed: bool,
    num: int | None = None,
    areas: tuple[int, int, int] | None = None,
) -> None:
    """At DRIVER_OK, for this reason; nobody else notices."""
    with nothing_left(stage), stage.neighbour_at_work(), stage.raw(packed=packed) as raw:
        with LogWatch("WARNING") as log:
            assert not raw.start(num=num, areas=areas)
        assert not raw.driver.get_status() & Status.DRIVER_OK
        (line,) = (line for line in log.lines if "DRIVER_OK refused" in line)
        assert line.startswith(f"{VICTIM}: DRIVER_OK refused: virtqueue 0: ")
        assert line.endswith(message)
    stage.check_whole(packed=packed)


@pytest.mark.parametrize(
    ("driver", "device"), [(_DRIVER + 1, _DEVICE), (_DRIVER, _DEVICE + 2)], ids=["driver", "device"]
)
def test_areas_that_the_framework_refuses(stage: Stage, driver: int, device: int) -> None:
    with stage.raw() as raw, pytest.raises(OSError) as error:
        raw.start(areas=(_DESC, driver, device))
    assert error.value.errno == errno.EINVAL


@pytest.mark.parametrize("base", [1, 16, 0x7FFF])
def test_a_split_ring_that_goes_on_where_nothing_is(stage: Stage, base: int) -> None:
    stage.log.clear()
    with nothing_left(stage), stage.neighbour_at_work(), stage.raw() as raw:
        raw.start(base=base)
        stage.check_broken(f"malformed virtqueue: avail index 0 is more than 16 ahead of {base}")
    stage.check_whole()


@pytest.mark.parametrize("base", [0x8010, 0x8000_7FFF, 0xFFFF_FFFF, 0x8000_0001])
def test_a_packed_ring_that_starts_outside_itself(stage: Stage, base: int) -> None:
    with stage.raw(packed=True) as raw, LogWatch("WARNING") as log:
        assert not raw.start(base=base)
        assert any("DRIVER_OK refused: virtqueue 0" in line for line in log.lines)
    stage.check_whole(packed=True)


@pytest.mark.parametrize(
    "features",
    [
        0,
        (1 << 64) - 1,
        Feature.VERSION_1,
        Feature.ACCESS_PLATFORM,
        Feature.VERSION_1 | Feature.ACCESS_PLATFORM | Feature.SR_IOV,
    ],
)
def test_features_that_the_device_refuses(stage: Stage, features: int) -> None:
    driver = stage.park.framework.bus.vhost(VICTIM).open()
    try:
        driver.set_status(Status.ACKNOWLEDGE)
        driver.set_status(Status.ACKNOWLEDGE | Status.DRIVER)
        driver.set_features(features)
        driver.set_status(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)
        assert not driver.get_status() & Status.FEATURES_OK
    finally:
        driver.close()
    stage.check_whole()


def _skip_to_driver_ok(raw: RawDriver) -> None:
    raw.driver.set_status(0)
    raw.driver.set_status(Status.DRIVER_OK)


def _status_bits(raw: RawDriver) -> None:
    raw.driver.set_status(0)
    for bit in range(8):
        raw.driver.set_status(raw.driver.get_status() | 1 << bit)


@pytest.mark.parametrize("act", [_skip_to_driver_ok, _status_bits])
def test_statuses_out_of_order(stage: Stage, act: Callable[[RawDriver], None]) -> None:
    with nothing_left(stage), stage.neighbour_at_work(), stage.raw() as raw:
        act(raw)
    stage.check_whole()


def test_reset_after_reset(stage: Stage) -> None:
    with nothing_left(stage), stage.neighbour_at_work(), stage.raw() as raw:
        assert raw.start()
        for _ in range(50):
            raw.driver.set_status(0)
    stage.check_whole()


def _break_and_replace(packed: bool) -> None:
    with blk_stack(name="broken", driver="vhost_vdpa", packed=True) as stack:
        with LogWatch() as log, RawDriver(stack.driver, packed=packed) as raw:
            assert raw.start()
            raw.submit([(raw.at(0), 0, 0)])
            raw.kick()
            log.wait_for("broken: stopped until the driver resets it: virtqueue 0: ")
        stack.driver.close()
        stack.framework.dev_del("broken")
        stack.blk.close(destroy=True)
        assert "broken" not in stack.framework.devices
        stack.replace_device()
        stack.framework.dev_add("broken")
        stack.disk.pwrite(bytes(512), 0)


@both_formats
def test_a_broken_device_that_is_destroyed_leaves_nothing(stage: Stage, packed: bool) -> None:
    """Device side, framework side and bus: all that there was for it is gone, at once."""
    with nothing_left(stage):
        _break_and_replace(packed)
