"""What villains are made of."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
from collections.abc import Callable

from vduse.control.abi import (
    DevConfig,
    Ioctl,
    VqConfig,
)
from vduse.control.features import DeviceId, Feature

FOLDER = "/dev/vduse"
#: Of the device that it creates.
NAME = os.environ.get("VILLAIN", "hostile")
NEIGHBOUR = "neighbour"
QUEUES = 4
CONFIG = DevConfig(
    name=NAME,
    vendor_id=0,
    device_id=DeviceId.BLOCK,
    features=int(Feature.VERSION_1 | Feature.ACCESS_PLATFORM),
    vq_num=QUEUES,
    vq_align=4096,
    config=(2048).to_bytes(8, "little") + bytes(52),
)
PAGE = mmap.PAGESIZE

libc = ctypes.CDLL(None, use_errno=True)
VILLAINS: dict[str, Callable[[], None]] = {}


def villain(program: Callable[[], None]) -> Callable[[], None]:
    """Registers a program under its name."""
    VILLAINS[program.__name__] = program
    return program


def say(*words: object) -> None:
    """A line for the test."""
    print(*words, flush=True)


def outcome(call: Callable[..., object], *arguments: object) -> str:
    """The errno of a call, by its name; "ok"."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def raw_ioctl(fd: int, nr: int, address: int) -> None:
    """With any address. OSError."""
    result = libc.ioctl(fd, ctypes.c_ulong(nr), ctypes.c_void_p(address))
    if result < 0:
        raise OSError(ctypes.get_errno(), "ioctl")


def ioctl(fd: int, nr: int, payload: bytes = b"") -> bytes:
    """With the struct of an ioctl; the struct as written back. OSError."""
    argument = bytearray(payload.ljust(nr >> 16 & 0x3FFF, b"\0"))
    fcntl.ioctl(fd, nr, argument, True)
    return bytes(argument)


def open_control(flags: int = 0) -> int:
    return os.open(f"{FOLDER}/control", os.O_RDWR | flags)


def open_node(name: str = NAME) -> int:
    return os.open(f"{FOLDER}/{name}", os.O_RDWR | os.O_NONBLOCK)


def create() -> int:
    """Creates the device and sets its virtqueues up; its node."""
    control = open_control()
    ioctl(control, Ioctl.CREATE_DEV, CONFIG.pack())
    os.close(control)
    node = open_node()
    for index in range(QUEUES):
        ioctl(node, Ioctl.VQ_SETUP, VqConfig(index, 64).pack())
    return node


def readable(*fds: int) -> set[int]:
    """Those of the fds that can be read, or are at their end; waits for one."""
    return set(select.select(fds, [], [])[0])


def send(node: int, data: bytes) -> None:
    """A write that waits for room."""
    while True:
        try:
            os.write(node, data)
            return
        except BlockingIOError:
            select.select([], [node], [])
