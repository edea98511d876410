"""docs/kernel-behaviour.md, "Control node": API versions, CREATE_DEV, DESTROY_DEV, attributes."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.devices import BASE, RawDevice, blk_config, refused
from tests.contract.ports import Platform, Program
from vduse.control.abi import DevConfig, Ioctl, pack_u64
from vduse.control.features import BlkFeature, DeviceId, Feature, NetFeature

MIB = 1 << 20
#: linux/capability.h
_CAP_NET_ADMIN = 12
NET = {"device_id": DeviceId.NET, "config": bytes(12)}


def use_v1(program: Program) -> DevConfig:
    """A configuration that API version 1 takes."""
    program.control.set_api_version(1)
    return blk_config(groups=1, spaces=1)


@pytest.mark.row("control.unknown")
@pytest.mark.parametrize("nr", [0x8104, int(Ioctl.VQ_SETUP)])
def test_unknown_command_is_einval(program: Program, nr: int) -> None:
    with refused(errno.EINVAL):
        program.control_ioctl(nr, b"")


@pytest.mark.row("control.unknown", "difference.foreign-ioctl")
def test_command_of_another_type_is_einval(platform: Platform, program: Program) -> None:
    with refused(errno.EINVAL if platform.hears_every_ioctl else errno.ENOTTY):
        program.control_ioctl(0, b"")


# --- API version ---------------------------------------------------------------------------


@pytest.mark.row("control.get-api-version.6.12")
@pytest.mark.profile("6.12")
def test_get_api_version_is_0(program: Program) -> None:
    assert program.control.get_api_version() == 0


@pytest.mark.row("control.get-api-version.7.2")
@pytest.mark.profile("7.2")
def test_get_api_version_pins_this_fd_to_1(program: Program) -> None:
    assert program.control.get_api_version() == 1
    with refused(errno.EINVAL):  # a version 0 configuration
        program.control.create_dev(blk_config())
    program.control.create_dev(blk_config(groups=1, spaces=1))


@pytest.mark.row("control.get-api-version.7.2")
@pytest.mark.profile("7.2")
def test_get_api_version_does_not_change_what_was_set(program: Program) -> None:
    program.control.set_api_version(0)
    assert program.control.get_api_version() == 0
    program.control.create_dev(blk_config())


@pytest.mark.row("control.set-api-version")
def test_set_api_version_above_the_newest_is_einval(platform: Platform, program: Program) -> None:
    newest = {"6.12": 0, "7.2": 1}[platform.profile]
    for version in (newest + 1, 1 << 63):
        with refused(errno.EINVAL):
            program.control_ioctl(Ioctl.SET_API_VERSION, pack_u64(version))
    program.control.set_api_version(newest)
    assert program.control.get_api_version() == newest


@pytest.mark.row("control.set-api-version")
@pytest.mark.profile("7.2")
def test_set_api_version_is_of_one_fd(platform: Platform, program: Program) -> None:
    other = platform.program()
    program.control.set_api_version(1)
    other.control.create_dev(blk_config())
    with refused(errno.EINVAL):
        program.control.create_dev(blk_config("vd1"))


@pytest.mark.row("control.default-api-version")
def test_api_version_is_0_where_neither_was_called(program: Program) -> None:
    with refused(errno.EINVAL):
        program.control.create_dev(blk_config(groups=1, spaces=1))
    program.control.create_dev(blk_config())


# --- CREATE_DEV ----------------------------------------------------------------------------


@pytest.mark.row("create.reserved")
@pytest.mark.parametrize("at", [0, 43])
def test_create_with_nonzero_reserved_is_einval(program: Program, at: int) -> None:
    reserved = bytearray(44)
    reserved[at] = 1
    with refused(errno.EINVAL):
        program.control.create_dev(replace(blk_config(), reserved=bytes(reserved)))


@pytest.mark.row("create.groups.v0")
@pytest.mark.parametrize(("groups", "spaces"), [(1, 0), (0, 1)])
def test_create_v0_with_groups_or_spaces_is_einval(
    program: Program, groups: int, spaces: int
) -> None:
    with refused(errno.EINVAL):
        program.control.create_dev(blk_config(groups=groups, spaces=spaces))


@pytest.mark.row("create.groups.v1")
@pytest.mark.profile("7.2")
@pytest.mark.parametrize(("groups", "spaces"), [(0, 1), (1, 0), (0x10000, 1), (1, 0x10000)])
def test_create_v1_without_or_with_too_many_groups_or_spaces_is_einval(
    program: Program, groups: int, spaces: int
) -> None:
    use_v1(program)
    with refused(errno.EINVAL):
        program.control.create_dev(blk_config(groups=groups, spaces=spaces))


@pytest.mark.row("create.groups.v1")
@pytest.mark.profile("7.2")
def test_create_v1_takes_65535_groups(program: Program) -> None:
    use_v1(program)
    program.control.create_dev(blk_config(groups=0xFFFF, spaces=1))


@pytest.mark.row("create.vq-align")
def test_create_wants_a_power_of_two_of_4_to_a_page_as_vq_align(program: Program) -> None:
    for align in (0, 1, 2, 3, 6, 4095, 8192):
        with refused(errno.EINVAL):
            program.control.create_dev(blk_config(vq_align=align))
    for align in (4, 4096):
        program.control.create_dev(blk_config(f"vd{align}", vq_align=align))


@pytest.mark.row("create.config-size")
def test_create_with_config_space_above_a_page_is_einval(program: Program) -> None:
    # The size alone counts: nothing need follow it.
    too_long = blk_config(config=b"").pack()[:-4] + (4097).to_bytes(4, "little")
    with refused(errno.EINVAL):
        program.control_ioctl(Ioctl.CREATE_DEV, too_long)
    program.control.create_dev(blk_config(config=bytes(4096)))


@pytest.mark.row("create.vq-num")
def test_create_with_more_than_65535_virtqueues_is_einval(program: Program) -> None:
    with refused(errno.EINVAL):
        program.control.create_dev(blk_config(vq_num=0x10000))


@pytest.mark.row("create.name-empty")
def test_create_without_a_name_is_einval(program: Program) -> None:
    with refused(errno.EINVAL):
        program.control.create_dev(blk_config(""))


def create_net(program: Program, config: DevConfig) -> None:
    """Passes every check; but for a tester without CAP_NET_ADMIN the one that asks for it."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.split("CapEff:")[1].split()[0], 16)
    if capabilities >> _CAP_NET_ADMIN & 1:
        program.control.create_dev(config)
    else:
        with refused(errno.EPERM):
            program.control.create_dev(config)


@pytest.mark.row("create.device-id")
def test_create_takes_the_profiles_device_ids_only(platform: Platform, program: Program) -> None:
    allowed = {"6.12": {1, 2}, "7.2": {1, 2, 26}}[platform.profile]
    for device_id in (0, 1, 2, 3, 4, 26, 0xFFFF):
        config = blk_config(f"vd{device_id}", device_id=device_id)
        if device_id == DeviceId.NET:
            create_net(program, config)
        elif device_id in allowed:
            program.control.create_dev(config)
        else:
            with refused(errno.EINVAL):
                program.control.create_dev(config)


@pytest.mark.row("create.access-platform")
def test_create_without_access_platform_is_einval(program: Program) -> None:
    with refused(errno.EINVAL):
        program.control.create_dev(blk_config(features=Feature.VERSION_1))


@pytest.mark.row("create.blk-config-wce")
def test_create_block_with_config_wce_is_einval(program: Program) -> None:
    with refused(errno.EINVAL):
        program.control.create_dev(blk_config(features=BASE | BlkFeature.CONFIG_WCE))
    # The same bit is another feature to a net device.
    net = blk_config(features=BASE | BlkFeature.CONFIG_WCE, device_id=DeviceId.NET)
    create_net(program, net)


@pytest.mark.row("create.net-ctrl-vq")
def test_create_net_with_ctrl_vq_is_einval(program: Program) -> None:
    with refused(errno.EINVAL):
        program.control.create_dev(
            blk_config(device_id=DeviceId.NET, features=BASE | NetFeature.CTRL_VQ)
        )


@pytest.mark.row("create.net-version-1")
def test_create_net_without_version_1_is_einval(program: Program) -> None:
    with refused(errno.EINVAL):
        program.control.create_dev(
            blk_config(device_id=DeviceId.NET, features=Feature.ACCESS_PLATFORM)
        )
    program.control.create_dev(blk_config(features=Feature.ACCESS_PLATFORM))


@pytest.mark.row("create.net-capability")
def test_create_net_without_cap_net_admin_is_eperm(platform: Platform) -> None:
    program = platform.unprivileged_program()
    with refused(errno.EPERM):
        program.control.create_dev(blk_config(device_id=DeviceId.NET))
    program.control.create_dev(blk_config())


@pytest.mark.row("create.exists")
def test_create_of_a_taken_name_is_eexist(platform: Platform, program: Program) -> None:
    program.control.create_dev(blk_config())
    for again in (program, platform.program()):
        with refused(errno.EEXIST):
            again.control.create_dev(blk_config())


@pytest.mark.row("create.order")
def test_create_checks_the_configuration_then_the_capability_then_the_name(
    platform: Platform, program: Program
) -> None:
    program.control.create_dev(blk_config())
    with refused(errno.EINVAL):  # and the name is taken
        program.control.create_dev(blk_config(features=Feature.VERSION_1))
    unprivileged = platform.unprivileged_program()
    with refused(errno.EINVAL):  # and no capability, and the name is taken
        unprivileged.control.create_dev(
            blk_config(device_id=DeviceId.NET, features=BASE | NetFeature.CTRL_VQ)
        )
    with refused(errno.EPERM):  # and the name is taken
        unprivileged.control.create_dev(blk_config(device_id=DeviceId.NET))


@pytest.mark.row("create.nothing-required")
def test_create_without_virtqueues_or_config_space(program: Program) -> None:
    program.control.create_dev(blk_config(vq_num=0, config=b""))
    program.open("vd0")


@pytest.mark.row("create.name-cut")
def test_create_cuts_the_name_at_255_bytes(program: Program) -> None:
    packed = blk_config().pack()
    program.control_ioctl(Ioctl.CREATE_DEV, b"n" * 256 + packed[256:])
    program.open("n" * 255)


@pytest.mark.row("create.packed")
def test_create_takes_packed_virtqueues(program: Program) -> None:
    program.control.create_dev(blk_config(features=BASE | Feature.RING_PACKED))


@pytest.mark.row("difference.address-spaces")
@pytest.mark.profile("7.2")
def test_create_with_more_than_one_address_space_says_that_it_is_not_supported(
    program: Program,
) -> None:
    use_v1(program)
    with refused(errno.EOPNOTSUPP):
        program.control.create_dev(blk_config(groups=1, spaces=2))


@pytest.mark.row("difference.cut-struct")
def test_a_struct_cut_short_ends_its_connection_only(platform: Platform, program: Program) -> None:
    other = platform.program()
    with pytest.raises(ConnectionError):
        program.control_ioctl(Ioctl.CREATE_DEV, blk_config().pack()[:-1])
    other.control.create_dev(blk_config())


# --- DESTROY_DEV ---------------------------------------------------------------------------


@pytest.mark.row("destroy.unknown")
def test_destroy_of_an_unknown_name_is_einval(program: Program) -> None:
    with refused(errno.EINVAL):
        program.control.destroy_dev("vd0")


@pytest.mark.row("destroy.open")
def test_destroy_while_the_node_is_open_is_ebusy(device: RawDevice) -> None:
    with refused(errno.EBUSY):
        device.program.control.destroy_dev("vd0")
    device.close()
    device.program.control.destroy_dev("vd0")


@pytest.mark.row("destroy.attached")
def test_destroy_while_attached_is_ebusy(platform: Platform, device: RawDevice) -> None:
    platform.dev_add("vd0")
    device.close()
    with refused(errno.EBUSY):
        device.program.control.destroy_dev("vd0")
    platform.dev_del("vd0")
    device.program.control.destroy_dev("vd0")


@pytest.mark.row("destroy.name-to-the-nul")
def test_destroy_reads_the_name_to_its_nul(program: Program) -> None:
    for name in (b"vd0\0", b"vd0\0vd1".ljust(256, b"\0")):
        program.control.create_dev(blk_config())
        program.control_ioctl(Ioctl.DESTROY_DEV, name)


# --- attributes ----------------------------------------------------------------------------


@pytest.mark.row("attribute.msg-timeout")
def test_msg_timeout_is_30_seconds_and_settable(platform: Platform, device: RawDevice) -> None:
    assert platform.attribute("vd0", "msg_timeout") == 30
    for seconds in (1, 3600, 0):
        platform.set_attribute("vd0", "msg_timeout", seconds)
        assert platform.attribute("vd0", "msg_timeout") == seconds
    with refused(errno.EINVAL, errno.ERANGE):
        platform.set_attribute("vd0", "msg_timeout", -1)


@pytest.mark.row("attribute.bounce-size")
def test_bounce_size_is_64_mib_and_settable_within_bounds(
    platform: Platform, device: RawDevice
) -> None:
    assert platform.attribute("vd0", "bounce_size") == 64 * MIB
    for size in (MIB, 1024 * MIB):
        platform.set_attribute("vd0", "bounce_size", size)
        assert platform.attribute("vd0", "bounce_size") == size
    for size in (MIB - 1, 1024 * MIB + 1, 0):
        with refused(errno.EINVAL):
            platform.set_attribute("vd0", "bounce_size", size)
    platform.set_attribute("vd0", "bounce_size", MIB + 4095)
    assert platform.attribute("vd0", "bounce_size") == MIB


@pytest.mark.row("attribute.bounce-size-fixed")
def test_bounce_size_is_fixed_once_a_domain_exists(platform: Platform, device: RawDevice) -> None:
    platform.dev_add("vd0")
    for size in (MIB, 0):  # this check comes before the bounds
        with refused(errno.EPERM):
            platform.set_attribute("vd0", "bounce_size", size)
    platform.dev_del("vd0")
    with refused(errno.EPERM):
        platform.set_attribute("vd0", "bounce_size", MIB)
