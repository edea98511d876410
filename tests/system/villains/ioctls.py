"""Ioctls whose numbers or structs make no sense."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import random
import threading
from collections.abc import Sequence
from dataclasses import replace

from tests.system.villains.base import (
    CONFIG,
    PAGE,
    create,
    ioctl,
    libc,
    open_control,
    outcome,
    raw_ioctl,
    say,
    villain,
)
from vduse.control.abi import (
    DevConfig,
    DevSetConfig,
    Ioctl,
    IotlbEntry,
    VqInfo,
    pack_name,
)


def _own_numbers() -> set[int]:
    return {int(nr) for nr in Ioctl}


def _on_all(numbers: Sequence[int], address: int) -> None:
    """What the numbers meet with on both kinds of node, each outcome once."""
    node, control = create(), open_control()
    for fd in (node, control):
        say(*sorted({outcome(raw_ioctl, fd, nr, address) for nr in numbers}))


@villain
def numbers_that_do_not_exist() -> None:
    """Each number of VDUSE's type, with sizes and directions of all kinds."""
    memory = mmap.mmap(-1, 16 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    numbers = [
        direction << 30 | size << 16 | 0x8100 | number
        for direction in range(4)
        for size in (0, 1, 8, 336, 0x3FFF)
        for number in range(0, 256, 3)
    ]
    _on_all([nr for nr in numbers if nr not in _own_numbers()], address)


def _addresses() -> list[int]:
    """Where nothing is, or only the beginning of a struct."""
    memory = mmap.mmap(-1, 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc.mprotect(ctypes.c_void_p(start + PAGE), PAGE, 0)
    return [0, 1, start + PAGE, start + PAGE - 1, (1 << 47) - 1, 1 << 63, (1 << 64) - 8]


@villain
def bad_addresses() -> None:
    """Structs that are not there, or only in part."""
    node, control = create(), open_control()
    with_struct = [nr for nr in Ioctl if nr >> 16 & 0x3FFF]
    of_control = [nr for nr in with_struct if nr & 0xFF < 0x10]
    for address, nr in itertools.product(_addresses(), with_struct):
        fd = control if nr in of_control else node
        told = outcome(raw_ioctl, fd, nr, address)
        # The name to destroy may be read byte by byte, and end before its memory does.
        allowed = {"EFAULT", "EINVAL"} if nr == Ioctl.DESTROY_DEV else {"EFAULT"}
        if nr == Ioctl.IOTLB_GET_FD2:
            allowed.add("ENOTTY")  # of a device of version 0, before its struct is read
        if told not in allowed:
            say(f"{nr:#x} at {address:#x}: {told}")
    say(outcome(ioctl, node, Ioctl.DEV_GET_FEATURES))


@villain
def read_only_memory() -> None:
    """A struct that cannot be written back."""
    node = create()
    memory = mmap.mmap(-1, PAGE)
    memory[: VqInfo.SIZE] = VqInfo(1).pack()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc.mprotect(ctypes.c_void_p(address), PAGE, mmap.PROT_READ)
    say(outcome(raw_ioctl, node, Ioctl.VQ_GET_INFO, address))
    say(outcome(raw_ioctl, node, Ioctl.IOTLB_GET_FD, address))


@villain
def changing_memory() -> None:
    """The length in a struct changes while the struct is read."""
    node = create()
    control = open_control()
    config = bytearray(replace(CONFIG, name="flip", config=bytes(4096)).pack())
    update = bytearray(DevSetConfig(0, bytes(60)).pack().ljust(8192, b"\0"))
    sizes = [0, 1, 60, 61, 4096, 4097, 0xFFFF_FFFF]
    over = threading.Event()

    def change() -> None:
        for size in itertools.cycle(sizes):
            config[DevConfig.SIZE - 4 : DevConfig.SIZE] = size.to_bytes(4, "little")
            update[4:8] = size.to_bytes(4, "little")
            if over.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    at = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in (config, update)]
    found = set()
    for _ in range(300):
        if (told := outcome(raw_ioctl, control, Ioctl.CREATE_DEV, at[0])) == "ok":
            ioctl(control, Ioctl.DESTROY_DEV, pack_name("flip"))
        found |= {told, outcome(raw_ioctl, node, Ioctl.DEV_SET_CONFIG, at[1])}
    over.set()
    thread.join()
    say(*sorted(found - {"ok", "EINVAL"}))


@villain
def random_structs() -> None:
    """Real numbers, structs of random bytes."""
    node, control = create(), open_control()
    source = random.Random(3)
    for _ in range(2000):
        nr = source.choice(list(Ioctl))
        size = nr >> 16 & 0x3FFF
        fill = source.choice([b"\0", b"\1", b"\xff"])
        payload = source.choice([source.randbytes(size), fill * size]).ljust(8192, fill)
        buffer = ctypes.create_string_buffer(payload)
        fd = source.choice([node, control])
        if nr != Ioctl.DESTROY_DEV:
            outcome(raw_ioctl, fd, nr, ctypes.addressof(buffer))
    entry = IotlbEntry(0, 0, (1 << 64) - 1, 0).pack()
    say(outcome(ioctl, node, Ioctl.IOTLB_GET_FD, entry))
