"""Spec section "Control fd, /dev/vduse/control"."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.raw_device import blk_config
from vduse.bus.errors import DeviceExists
from vduse.channel.packet import Credentials
from vduse.control.abi import DevConfig, ExtCall, Ioctl, pack_name, pack_u64, unpack_u64
from vduse.control.features import BlkFeature, DeviceId, Feature, NetFeature
from vduse.framework import control_node
from vduse.framework.control_node import ControlNode
from vduse.framework.profile import PROFILES

BASE = Feature.VERSION_1 | Feature.ACCESS_PLATFORM


class Table:
    """Devices by name; records what passed the checks."""

    def __init__(self) -> None:
        self.created: dict[str, tuple[DevConfig, int]] = {}
        self.destroyed: list[str] = []

    def create(self, config: DevConfig, api_version: int) -> None:
        if config.name in self.created:
            raise DeviceExists(config.name)
        self.created[config.name] = (config, api_version)

    def destroy(self, name: str) -> None:
        self.destroyed.append(name)

    def open(self, name: str) -> list[int]:
        return [len(name)]


def node(profile: str = "6.12", table: Table | None = None) -> ControlNode:
    return ControlNode(
        table or Table(), PROFILES[profile], lambda: Credentials(os.getpid(), os.getuid(), 0)
    )


def code(control: ControlNode, nr: int, payload: bytes = b"") -> int:
    """0, or the errno of the ioctl."""
    try:
        control.ioctl(nr, payload, [])
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


def create(control: ControlNode, **changes: Any) -> int:
    return code(control, Ioctl.CREATE_DEV, blk_config(**changes).pack())


NET = {"device_id": DeviceId.NET, "features": BASE | NetFeature.MAC}

# Each row is wrong in what it names, and in everything that is checked after it.
CREATE_ORDER = [
    ("reserved", {"reserved": b"\1" + bytes(43)}, errno.EINVAL),
    ("v0 ngroups", {"ngroups": 1}, errno.EINVAL),
    ("v0 nas", {"nas": 1}, errno.EINVAL),
    ("vq_align above a page", {"vq_align": 8192}, errno.EINVAL),
    ("vq_align of 0", {"vq_align": 0}, errno.EINVAL),
    ("vq_align below 4", {"vq_align": 2}, errno.EINVAL),
    ("vq_align no power of two", {"vq_align": 48}, errno.EINVAL),
    ("config_size above a page", {"config": bytes(4097)}, errno.EINVAL),
    ("vq_num above 0xffff", {"vq_num": 0x10000}, errno.EINVAL),
    ("empty name", {"name": ""}, errno.EINVAL),
    ("device id", {"device_id": DeviceId.CONSOLE}, errno.EINVAL),
    ("no ACCESS_PLATFORM", {"features": Feature.VERSION_1}, errno.EINVAL),
    ("block with CONFIG_WCE", {"features": BASE | BlkFeature.CONFIG_WCE}, errno.EINVAL),
    ("net with CTRL_VQ", {**NET, "features": BASE | NetFeature.CTRL_VQ}, errno.EINVAL),
    ("net without VERSION_1", {**NET, "features": Feature.ACCESS_PLATFORM}, errno.EINVAL),
]


@pytest.mark.parametrize(
    ("changes", "expected"), [row[1:] for row in CREATE_ORDER], ids=[row[0] for row in CREATE_ORDER]
)
def test_create_dev_refuses(changes: dict[str, object], expected: int) -> None:
    control = node()
    control.ioctl(Ioctl.CREATE_DEV, blk_config("taken").pack(), [])
    # A taken name (EEXIST) is looked at last of all.
    assert create(control, **{"name": "taken", **changes}) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vq_num": 0},
        {"config": b""},
        {"vq_align": 4},
        {"vq_align": 4096},
        {"config": bytes(4096)},
        {"vq_num": 0xFFFF},
        {"features": BASE | Feature.RING_PACKED},
        {"features": Feature.ACCESS_PLATFORM},
    ],
)
def test_create_dev_takes(changes: dict[str, object]) -> None:
    assert create(node(), **changes) == 0


def test_create_dev_net_needs_cap_net_admin_before_the_name_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table()
    control = node(table=table)
    assert create(control, name="taken") == 0
    monkeypatch.setattr(control_node, "has_capability", lambda pid, cap: False)
    assert create(control, **{**NET, "name": "taken"}) == errno.EPERM
    assert create(control, **{**NET, "features": Feature.VERSION_1}) == errno.EINVAL
    monkeypatch.setattr(control_node, "has_capability", lambda pid, cap: True)
    assert create(control, **{**NET, "name": "taken"}) == errno.EEXIST
    assert create(control, **{**NET, "name": "net0"}) == 0
    assert list(table.created) == ["taken", "net0"]


def test_create_dev_cuts_the_name_at_255() -> None:
    table = Table()
    payload = bytearray(blk_config().pack())
    payload[:256] = b"x" * 256
    node(table=table).ioctl(Ioctl.CREATE_DEV, bytes(payload), [])
    assert list(table.created) == ["x" * 255]


def test_create_dev_with_a_config_size_that_lies_ends_the_connection() -> None:
    config = blk_config().pack()
    with pytest.raises(ValueError, match="config"):
        node().ioctl(Ioctl.CREATE_DEV, config[:-1], [])
    with pytest.raises(ValueError, match="u32"):
        node().ioctl(Ioctl.CREATE_DEV, config[:200], [])


class TestProfile72:
    """Linux 7.2: API version 1."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"ngroups": 0, "nas": 1},
            {"ngroups": 1, "nas": 0},
            {"ngroups": 0x10000, "nas": 1},
            {"ngroups": 1, "nas": 0x10000},
        ],
    )
    def test_create_dev_refuses(self, changes: dict[str, object]) -> None:
        control = node("7.2")
        control.ioctl(Ioctl.SET_API_VERSION, pack_u64(1), [])
        assert create(control, **{"ngroups": 1, "nas": 1, **changes}) == errno.EINVAL

    def test_fs_is_allowed(self) -> None:
        assert create(node("7.2"), device_id=DeviceId.FS) == 0
        assert create(node("6.12"), device_id=DeviceId.FS) == errno.EINVAL

    def test_several_address_spaces_are_refused(self) -> None:
        control = node("7.2")
        control.ioctl(Ioctl.SET_API_VERSION, pack_u64(1), [])
        assert create(control, ngroups=2, nas=2) == errno.EOPNOTSUPP
        assert create(control, ngroups=2, nas=1) == 0

    def test_get_api_version_pins_so_that_a_v0_program_fails_create(self) -> None:
        control = node("7.2")
        assert unpack_u64(control.ioctl(Ioctl.GET_API_VERSION, b"", [])[1]) == 1
        assert create(control) == errno.EINVAL

    def test_version_is_0_where_nobody_asked(self) -> None:
        table = Table()
        assert create(node("7.2", table)) == 0
        assert table.created["vd0"][1] == 0

    def test_set_api_version_is_per_fd(self) -> None:
        table = Table()
        first, second = node("7.2", table), node("7.2", table)
        first.ioctl(Ioctl.SET_API_VERSION, pack_u64(1), [])
        assert create(first, name="a") == errno.EINVAL
        assert create(second, name="b") == 0
        first.ioctl(Ioctl.SET_API_VERSION, pack_u64(0), [])
        assert unpack_u64(first.ioctl(Ioctl.GET_API_VERSION, b"", [])[1]) == 0
        assert create(first, name="a") == 0


@pytest.mark.parametrize(("profile", "newest"), [("6.12", 0), ("7.2", 1)])
def test_api_version(profile: str, newest: int) -> None:
    control = node(profile)
    assert unpack_u64(control.ioctl(Ioctl.GET_API_VERSION, b"", [])[1]) == newest
    assert code(control, Ioctl.SET_API_VERSION, pack_u64(newest + 1)) == errno.EINVAL
    assert code(control, Ioctl.SET_API_VERSION, pack_u64(newest)) == 0


def test_unknown_command_is_einval() -> None:
    assert code(node(), 0x1234) == errno.EINVAL
    assert code(node(), Ioctl.VQ_SETUP) == errno.EINVAL


def test_destroy_dev_reads_a_short_string_to_its_nul() -> None:
    table = Table()
    node(table=table).ioctl(Ioctl.DESTROY_DEV, b"vd0\0garbage", [])
    assert table.destroyed == ["vd0"]


def test_open_gives_the_fds_away() -> None:
    assert node().ioctl(ExtCall.OPEN, pack_name("vd0"), []) == (0, b"", [3])


def test_config_is_passed_on_as_it_came() -> None:
    table = Table()
    config = replace(blk_config(), vendor_id=0x1AF4, config=b"abc")
    node(table=table).ioctl(Ioctl.CREATE_DEV, config.pack(), [])
    assert table.created["vd0"] == (config, 0)
