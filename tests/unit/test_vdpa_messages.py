"""Messages of the netlink family "vdpa", byte by byte (linux/vdpa.h)."""

from __future__ import annotations

import struct

import pytest

from vduse.vdpa.messages import (
    Command,
    DeviceConfig,
    ManagementDevice,
    VdpaDevice,
    VdpaMessage,
    attributes_of,
    request,
    vendor_statistics,
)

#: struct nlmsghdr, and struct genlmsghdr behind it.
NLMSG = struct.Struct("=IHHII")
GENL = struct.Struct("=BBH")


def attribute(kind: int, payload: bytes) -> bytes:
    """struct nlattr, its payload, and padding to 4 bytes."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def answer(*attributes: bytes) -> VdpaMessage:
    """A message as it comes from the kernel."""
    body = GENL.pack(Command.DEV_NEW, 1, 0) + b"".join(attributes)
    message = VdpaMessage(NLMSG.pack(NLMSG.size + len(body), 0x1D, 0, 1, 0) + body)
    message.decode()
    return message


def u16(value: int) -> bytes:
    return struct.pack("=H", value)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def encoded(message: VdpaMessage) -> bytes:
    """genlmsghdr and attributes."""
    message.encode()
    return bytes(message.data[NLMSG.size :])


def test_dev_new_as_the_kernel_takes_it() -> None:
    message = request(
        Command.DEV_NEW,
        {
            "MGMTDEV_DEV_NAME": "vduse",
            "DEV_NAME": "disk0",
            "DEV_FEATURES": 1 << 33,
            "DEV_NET_CFG_MACADDR": "52:54:00:12:34:56",
            "DEV_NET_CFG_MTU": 1500,
        },
    )
    assert encoded(message) == GENL.pack(3, 1, 0) + b"".join(
        [
            attribute(2, b"vduse\0"),
            attribute(4, b"disk0\0"),
            attribute(20, u64(1 << 33)),
            attribute(10, bytes.fromhex("525400123456")),
            attribute(13, u16(1500)),
        ]
    )


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (Command.MGMTDEV_GET, 2),
        (Command.DEV_DEL, 4),
        (Command.DEV_GET, 5),
        (Command.DEV_CONFIG_GET, 6),
        (Command.DEV_VSTATS_GET, 7),
    ],
)
def test_commands_of_linux_vdpa_h(command: Command, number: int) -> None:
    assert encoded(request(command, {})) == GENL.pack(number, 1, 0)


def test_attribute_numbers_of_linux_vdpa_h() -> None:
    names = [name for name, _ in VdpaMessage.nla_map]
    assert names.index("VDPA_ATTR_DEV_SUPPORTED_FEATURES") == 16
    assert names.index("VDPA_ATTR_DEV_FEATURES") == 20
    assert names.index("VDPA_ATTR_DEV_BLK_CFG_CAPACITY") == 21
    assert names.index("VDPA_ATTR_DEV_BLK_FLUSH") == len(names) - 1 == 36


def test_management_device() -> None:
    message = answer(
        attribute(2, b"vduse\0"),
        attribute(0, b""),  # padding before a u64
        attribute(3, u64(1 << 1 | 1 << 2)),
        attribute(15, u32(0)),
        attribute(16, u64(0)),
    )
    found = ManagementDevice.of(attributes_of(message))
    assert found == ManagementDevice("vduse", frozenset({1, 2}), 0, 0)


def test_management_device_on_a_bus() -> None:
    message = answer(attribute(1, b"pci\0"), attribute(2, b"0000:01:00.2\0"))
    assert ManagementDevice.of(attributes_of(message)).name == "pci/0000:01:00.2"


def test_device() -> None:
    message = answer(
        attribute(2, b"vduse\0"),
        attribute(4, b"disk0\0"),
        attribute(5, u32(2)),
        attribute(6, u32(0x1AF4)),
        attribute(7, u32(16)),
        attribute(8, u16(128)),
        attribute(9, u16(1)),
    )
    assert VdpaDevice.of(attributes_of(message)) == VdpaDevice(
        "disk0", "vduse", device_id=2, vendor_id=0x1AF4, max_vqs=16, max_vq_size=128, min_vq_size=1
    )


def test_config() -> None:
    message = answer(
        attribute(4, b"disk0\0"),
        attribute(5, u32(2)),
        attribute(14, u64(1 << 33)),
        attribute(21, u64(131072)),
        attribute(25, u16(4)),
        attribute(35, b"\0"),
    )
    assert DeviceConfig.of(attributes_of(message)) == DeviceConfig(
        "disk0",
        device_id=2,
        negotiated_features=1 << 33,
        fields={"blk_cfg_capacity": 131072, "blk_cfg_num_queues": 4, "blk_read_only": 0},
    )


def test_config_before_features_are_chosen() -> None:
    message = answer(attribute(4, b"disk0\0"), attribute(5, u32(2)))
    assert DeviceConfig.of(attributes_of(message)).negotiated_features is None


def test_attribute_of_a_newer_kernel_is_left_out() -> None:
    message = answer(attribute(4, b"disk0\0"), attribute(99, u32(1)), attribute(5, u32(2)))
    assert attributes_of(message) == [("DEV_NAME", "disk0"), ("DEV_ID", 2)]


def test_vendor_statistics_are_pairs() -> None:
    message = answer(
        attribute(17, u32(1)),
        attribute(18, b"received_desc\0"),
        attribute(19, u64(7)),
        attribute(18, b"completed_desc\0"),
        attribute(19, u64(5)),
    )
    expected = {"received_desc": 7, "completed_desc": 5}
    assert vendor_statistics(attributes_of(message)) == expected
