"""Calls and messages in words: names, and structs without what is zero."""

from __future__ import annotations

import errno
from dataclasses import fields

from vduse.control import abi
from vduse.control.features import Status

_NAMES: dict[int, str] = {
    **{call.value: call.name for call in abi.Ioctl},
    **{call.value: call.name for call in abi.ExtCall},
}

_STRUCTS: dict[
    int,
    type[
        abi.DevConfig
        | abi.DevSetConfig
        | abi.DirtyLog
        | abi.IotlbEntry
        | abi.IotlbEntryV2
        | abi.VqConfig
        | abi.VqInfo
        | abi.VqEventfd
        | abi.IovaUmem
        | abi.IovaInfo
    ],
] = {
    abi.Ioctl.CREATE_DEV: abi.DevConfig,
    abi.Ioctl.DEV_SET_CONFIG: abi.DevSetConfig,
    abi.Ioctl.IOTLB_GET_FD: abi.IotlbEntry,
    abi.Ioctl.IOTLB_GET_FD2: abi.IotlbEntryV2,
    abi.Ioctl.VQ_SETUP: abi.VqConfig,
    abi.Ioctl.VQ_GET_INFO: abi.VqInfo,
    abi.Ioctl.VQ_SETUP_KICKFD: abi.VqEventfd,
    abi.Ioctl.IOTLB_REG_UMEM: abi.IovaUmem,
    abi.Ioctl.IOTLB_DEREG_UMEM: abi.IovaUmem,
    abi.Ioctl.IOTLB_GET_INFO: abi.IovaInfo,
    abi.ExtCall.LOG_GET_FD: abi.DirtyLog,
}
_WITH_NAME = {abi.Ioctl.DESTROY_DEV, abi.ExtCall.OPEN}
_INTEGER_BYTES = (4, 8)
#: Numbers from here on are addresses or bits, and read better in hex.
_HEX_FROM = 1 << 16


def call_name(nr: int) -> str:
    """An ioctl's name as in linux/vduse.h without VDUSE_, or its number."""
    return _NAMES.get(nr, f"{nr:#x}")


def result_text(result: int) -> str:
    """What an ioctl returned: a number, or an errno's name."""
    return str(result) if result >= 0 else errno.errorcode.get(-result, str(result))


def message_text(message: abi.Message) -> str:
    """A message's type as in linux/vduse.h without VDUSE_, and what it says."""
    match message:
        case abi.SetStatus(status=status):
            return f"SET_STATUS {status:#x}{_reached(status)}"
        case abi.UpdateIotlb(start=start, last=last, asid=asid):
            return f"UPDATE_IOTLB {start:#x}-{last:#x}" + (f" asid {asid}" if asid else "")
        case abi.SetVqGroupAsid(group=group, asid=asid):
            return f"SET_VQ_GROUP_ASID group {group} asid {asid}"
        case abi.UnknownMessage(type=kind, body=body):
            return f"type {kind:#x} {body.rstrip(bytes(1)).hex()}".rstrip()
        case abi.UpdateLog():
            return "UPDATE_LOG"
    return f"{abi.RequestType(message.TYPE).name} vq {message.index}"


def _reached(status: int) -> str:
    """The last step of a driver's that a status shows (virtio 1.3, section 3.1.1)."""
    steps = (Status.FAILED, Status.DEVICE_NEEDS_RESET, Status.DRIVER_OK, Status.FEATURES_OK)
    for step in (*steps, Status.DRIVER, Status.ACKNOWLEDGE):
        if status & step:
            return f" {step.name}"
    return ""


def payload_text(nr: int, data: bytes) -> str:
    """A call's struct, fields that are not zero as ``name=value``; hex for what is none."""
    if nr in _WITH_NAME:
        return abi.unpack_name(data)
    struct = _STRUCTS.get(nr)
    if struct is not None:
        try:
            return _struct_text(struct.unpack(data))
        except ValueError:
            return data.hex()
    if len(data) in _INTEGER_BYTES:
        return _value_text(int.from_bytes(data, "little"))
    return data.hex()


def given_text(nr: int, data: bytes) -> str:
    """As :func:`payload_text`, of what a caller gives: without what only the answer sets, and a
    caller may leave as it was in memory."""
    try:
        if nr == abi.Ioctl.VQ_GET_INFO:
            data = abi.VqInfo(abi.VqInfo.unpack(data).index).pack()
        elif nr == abi.Ioctl.IOTLB_GET_FD:
            entry = abi.IotlbEntry.unpack(data)
            data = abi.IotlbEntry(start=entry.start, last=entry.last).pack()
    except ValueError:  # no such struct: as it is
        pass
    return payload_text(nr, data)


def _struct_text(struct: abi.Struct) -> str:
    shown = []
    for field in fields(struct):  # type: ignore[arg-type]  # each is a dataclass
        value = getattr(struct, field.name)
        if isinstance(value, abi.Struct):
            shown.append(_struct_text(value))
        elif value if not isinstance(value, bytes) else any(value):
            shown.append(f"{field.name}={_value_text(value)}")
    return " ".join(shown)


def _value_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int) and value >= _HEX_FROM:
        return f"{value:#x}"
    return str(value)
