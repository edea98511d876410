"""Messages of the generic netlink family "vdpa" (linux/vdpa.h of Linux 6.12 and 7.2: the same),
and what is read out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from pyroute2.netlink import genlmsg

FAMILY = "vdpa"
VERSION = 1


class Command(IntEnum):
    """enum vdpa_command, what may be asked."""

    MGMTDEV_GET = 2
    DEV_NEW = 3
    DEV_DEL = 4
    DEV_GET = 5
    DEV_CONFIG_GET = 6
    DEV_VSTATS_GET = 7


class VdpaMessage(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    """A message of the family: genlmsghdr and attributes (enum vdpa_attr, in its order)."""

    __slots__ = ()
    prefix = "VDPA_ATTR_"
    nla_map = (
        ("VDPA_ATTR_UNSPEC", "none"),  # pads what follows to 8 bytes
        ("VDPA_ATTR_MGMTDEV_BUS_NAME", "asciiz"),
        ("VDPA_ATTR_MGMTDEV_DEV_NAME", "asciiz"),
        ("VDPA_ATTR_MGMTDEV_SUPPORTED_CLASSES", "uint64"),
        ("VDPA_ATTR_DEV_NAME", "asciiz"),
        ("VDPA_ATTR_DEV_ID", "uint32"),
        ("VDPA_ATTR_DEV_VENDOR_ID", "uint32"),
        ("VDPA_ATTR_DEV_MAX_VQS", "uint32"),
        ("VDPA_ATTR_DEV_MAX_VQ_SIZE", "uint16"),
        ("VDPA_ATTR_DEV_MIN_VQ_SIZE", "uint16"),
        ("VDPA_ATTR_DEV_NET_CFG_MACADDR", "l2addr"),
        ("VDPA_ATTR_DEV_NET_STATUS", "uint8"),
        ("VDPA_ATTR_DEV_NET_CFG_MAX_VQP", "uint16"),
        ("VDPA_ATTR_DEV_NET_CFG_MTU", "uint16"),
        ("VDPA_ATTR_DEV_NEGOTIATED_FEATURES", "uint64"),
        ("VDPA_ATTR_DEV_MGMTDEV_MAX_VQS", "uint32"),
        ("VDPA_ATTR_DEV_SUPPORTED_FEATURES", "uint64"),
        ("VDPA_ATTR_DEV_QUEUE_INDEX", "uint32"),
        ("VDPA_ATTR_DEV_VENDOR_ATTR_NAME", "asciiz"),
        ("VDPA_ATTR_DEV_VENDOR_ATTR_VALUE", "uint64"),
        ("VDPA_ATTR_DEV_FEATURES", "uint64"),
        ("VDPA_ATTR_DEV_BLK_CFG_CAPACITY", "uint64"),
        ("VDPA_ATTR_DEV_BLK_CFG_SIZE_MAX", "uint32"),
        ("VDPA_ATTR_DEV_BLK_CFG_BLK_SIZE", "uint32"),
        ("VDPA_ATTR_DEV_BLK_CFG_SEG_MAX", "uint32"),
        ("VDPA_ATTR_DEV_BLK_CFG_NUM_QUEUES", "uint16"),
        ("VDPA_ATTR_DEV_BLK_CFG_PHY_BLK_EXP", "uint8"),
        ("VDPA_ATTR_DEV_BLK_CFG_ALIGN_OFFSET", "uint8"),
        ("VDPA_ATTR_DEV_BLK_CFG_MIN_IO_SIZE", "uint16"),
        ("VDPA_ATTR_DEV_BLK_CFG_OPT_IO_SIZE", "uint32"),
        ("VDPA_ATTR_DEV_BLK_CFG_MAX_DISCARD_SEC", "uint32"),
        ("VDPA_ATTR_DEV_BLK_CFG_MAX_DISCARD_SEG", "uint32"),
        ("VDPA_ATTR_DEV_BLK_CFG_DISCARD_SEC_ALIGN", "uint32"),
        ("VDPA_ATTR_DEV_BLK_CFG_MAX_WRITE_ZEROES_SEC", "uint32"),
        ("VDPA_ATTR_DEV_BLK_CFG_MAX_WRITE_ZEROES_SEG", "uint32"),
        ("VDPA_ATTR_DEV_BLK_READ_ONLY", "uint8"),
        ("VDPA_ATTR_DEV_BLK_FLUSH", "uint8"),
    )


#: The attributes of an answer, in their order, by their names without VDPA_ATTR_. A name may come
#: more than once.
Attributes = list[tuple[str, Any]]


def request(command: Command, attributes: Mapping[str, object]) -> VdpaMessage:
    """A message that asks for ``command``; attributes by their names without VDPA_ATTR_."""
    message = VdpaMessage()
    message["cmd"] = command
    message["version"] = VERSION
    message["attrs"] = [[VdpaMessage.prefix + name, value] for name, value in attributes.items()]
    return message


def attributes_of(message: VdpaMessage) -> Attributes:
    """What an answer carries. Attributes that this page does not know (a newer kernel's) are
    left out."""
    prefix = VdpaMessage.prefix
    return [
        (name.removeprefix(prefix), value)
        for name, value in message["attrs"]
        if name.startswith(prefix) and name != "VDPA_ATTR_UNSPEC"
    ]


@dataclass(frozen=True, slots=True)
class ManagementDevice:
    """What vDPA devices are added to; VDUSE's is called "vduse"."""

    #: "DEVICE", or "BUS/DEVICE".
    name: str
    #: Virtio device ids that it takes.
    device_ids: frozenset[int]
    #: Most virtqueues of a device; 0: it does not say.
    max_vqs: int
    #: Feature bits that `dev add` may choose from; 0: none.
    features: int

    @classmethod
    def of(cls, attributes: Attributes) -> ManagementDevice:
        """From an answer to MGMTDEV_GET."""
        values = dict(attributes)
        classes = values.get("MGMTDEV_SUPPORTED_CLASSES", 0)
        return cls(
            name=_management_name(values),
            device_ids=frozenset(bit for bit in range(64) if classes >> bit & 1),
            max_vqs=values.get("DEV_MGMTDEV_MAX_VQS", 0),
            features=values.get("DEV_SUPPORTED_FEATURES", 0),
        )


@dataclass(frozen=True, slots=True)
class VdpaDevice:
    """A device on the bus."""

    name: str
    #: Its :class:`ManagementDevice`.
    management: str
    #: Virtio device id.
    device_id: int
    vendor_id: int
    max_vqs: int
    #: Descriptors of a virtqueue.
    max_vq_size: int
    min_vq_size: int

    @classmethod
    def of(cls, attributes: Attributes) -> VdpaDevice:
        """From an answer to DEV_GET."""
        values = dict(attributes)
        return cls(
            name=values["DEV_NAME"],
            management=_management_name(values),
            device_id=values["DEV_ID"],
            vendor_id=values["DEV_VENDOR_ID"],
            max_vqs=values["DEV_MAX_VQS"],
            max_vq_size=values["DEV_MAX_VQ_SIZE"],
            min_vq_size=values.get("DEV_MIN_VQ_SIZE", 0),
        )


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device's configuration, as the kernel reads it out of the config space."""

    name: str
    #: Virtio device id.
    device_id: int
    #: Feature bits that the driver chose; None before FEATURES_OK.
    negotiated_features: int | None
    #: Everything else, by the attribute's name in small letters: ``blk_cfg_capacity`` (sectors of
    #: 512), ``net_cfg_macaddr``...
    fields: Mapping[str, int | str] = field(default_factory=dict)

    @classmethod
    def of(cls, attributes: Attributes) -> DeviceConfig:
        """From an answer to DEV_CONFIG_GET."""
        values = dict(attributes)
        return cls(
            name=values.pop("DEV_NAME"),
            device_id=values.pop("DEV_ID"),
            negotiated_features=values.pop("DEV_NEGOTIATED_FEATURES", None),
            fields={name.removeprefix("DEV_").lower(): value for name, value in values.items()},
        )


def vendor_statistics(attributes: Attributes) -> dict[str, int]:
    """The counters of a virtqueue: names and values follow each other."""
    names = [value for name, value in attributes if name == "DEV_VENDOR_ATTR_NAME"]
    values = [value for name, value in attributes if name == "DEV_VENDOR_ATTR_VALUE"]
    return dict(zip(names, values, strict=True))


def _management_name(values: Mapping[str, str]) -> str:
    bus = values.get("MGMTDEV_BUS_NAME")
    name = values.get("MGMTDEV_DEV_NAME", "")
    return f"{bus}/{name}" if bus else name
