"""Messages that the vhost-user specification does not allow, as a table: the message, what is
wrong with it, and the log's word for it. What must happen is the same for all of them: see
test_vhost_user_messages.py."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from tests.system.vhost_user_driver import USER, user
from tests.system.vhost_user_stage import QUEUE_SIZE, QUEUES
from tests.unit.vhost_user_front_end import state, u64
from vduse.control.features import Feature
from vduse.control.vhost_user import F_PROTOCOL_FEATURES, Request
from vduse.testing.rawdriver import BASE

#: Bytes of memory in the state "memory" and behind it, at BASE and USER.
SIZE: Final = 1 << 20
PAGE: Final = 0x1000
TOP: Final = (1 << 64) - PAGE
#: Unused guest physical addresses, and the front end's own.
ELSEWHERE: Final = BASE + 2 * SIZE

#: How far a front end has come before it sends the message: connected; features agreed and memory
#: shared; virtqueue 0 served.
State = Literal["fresh", "memory", "live"]
Fds = Callable[[], list[int]]


class Case(NamedTuple):
    message: int
    wrong: str
    payload: bytes
    #: The log's word.
    says: str
    #: Makes the fds that go along; they are the caller's.
    fds: Fds = list
    when: State = "fresh"


# --- fds ------------------------------------------------------------------------------------


def memory(size: int = SIZE) -> list[int]:
    fd = os.memfd_create("hostile")
    os.ftruncate(fd, size)
    return [fd]


def read_only_memory() -> list[int]:
    (writable,) = memory()
    fd = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
    os.close(writable)
    return [fd]


def eventfd() -> list[int]:
    return [os.eventfd(0)]


def many(count: int, make: Fds = eventfd) -> Fds:
    return lambda: [fd for _ in range(count) for fd in make()]


def pipe_reader() -> list[int]:
    reader, writer = os.pipe()
    os.close(writer)
    return [reader]


def pipe_writer() -> list[int]:
    reader, writer = os.pipe()
    os.close(reader)
    return [writer]


def unix_socket() -> list[int]:
    return [socket.socket(socket.AF_UNIX).detach()]


def tcp_socket() -> list[int]:
    return [socket.socket(socket.AF_INET).detach()]


def directory() -> list[int]:
    return [os.open("/", os.O_RDONLY)]


def path_only() -> list[int]:
    return [os.open("/", os.O_PATH)]


def empty_file() -> list[int]:
    return [os.memfd_create("hostile")]


def device() -> list[int]:
    return [os.open("/dev/null", os.O_RDWR)]


def epoll() -> list[int]:
    with select.epoll() as poller:
        return [os.dup(poller.fileno())]


def inotify() -> list[int]:
    return [ctypes.CDLL(None, use_errno=True).inotify_init()]


# --- payloads -------------------------------------------------------------------------------


def region(
    guest: int = ELSEWHERE, size: int = PAGE, at: int | None = None, offset: int = 0
) -> bytes:
    """ADD_MEM_REG's; ``at``: the front end's own address."""
    return bytes(8) + entry(guest, size, at, offset)


def entry(
    guest: int = ELSEWHERE, size: int = PAGE, at: int | None = None, offset: int = 0
) -> bytes:
    """One of SET_MEM_TABLE's."""
    return struct.pack("=QQQQ", guest, size, user(guest) if at is None else at, offset)


def table(count: int, *entries: bytes) -> bytes:
    """SET_MEM_TABLE's, said to be of ``count`` regions."""
    return struct.pack("=I4x", count) + b"".join(entries)


def areas(
    index: int = 0, desc: int = USER, avail: int = USER + 0x400, used: int = USER + 0x800
) -> bytes:
    """SET_VRING_ADDR's."""
    return struct.pack("=IIQQQQ", index, 0, desc, used, avail, 0)


def config(offset: int, size: int, data: bytes) -> bytes:
    """GET_CONFIG's and SET_CONFIG's."""
    return struct.pack("=III", offset, size, 0) + data


def inflight(
    size: int, queues: int = QUEUES, queue_size: int = QUEUE_SIZE, offset: int = 0
) -> bytes:
    """GET_INFLIGHT_FD's and SET_INFLIGHT_FD's."""
    return struct.pack("=QQHH4x", size, offset, queues, queue_size)


R = Request
_AGREED = Feature.VERSION_1 | F_PROTOCOL_FEATURES

FEATURES = [
    Case(R.SET_FEATURES, "no payload", b"", "SET_FEATURES: 0 bytes, expected 8"),
    Case(R.SET_FEATURES, "7 bytes", bytes(7), "SET_FEATURES: 7 bytes, expected 8"),
    Case(R.SET_FEATURES, "9 bytes", bytes(9), "SET_FEATURES: 9 bytes, expected 8"),
    Case(R.SET_FEATURES, "not offered", u64(_AGREED | 1 << 50), "the device refuses features"),
    Case(R.SET_FEATURES, "all", u64((1 << 64) - 1), "the device refuses features"),
    Case(R.SET_FEATURES, "no VERSION_1", u64(F_PROTOCOL_FEATURES), "the device refuses features"),
    Case(R.SET_FEATURES, "others while live", u64(_AGREED), "while the device runs", when="live"),
    Case(
        R.SET_PROTOCOL_FEATURES, "not offered", u64(1 << 60), "protocol features 0x1000000000000000"
    ),
    Case(R.SET_PROTOCOL_FEATURES, "4 bytes", bytes(4), "4 bytes, expected 8"),
    Case(R.SET_STATUS, "9 bits", u64(0x100), "status 0x100"),
    Case(R.SET_STATUS, "1 byte", b"\x0f", "1 bytes, expected 8"),
]

MEMORY = [
    Case(R.SET_MEM_TABLE, "no payload", b"", "SET_MEM_TABLE: 0 bytes"),
    Case(R.SET_MEM_TABLE, "7 bytes", bytes(7), "SET_MEM_TABLE: 7 bytes"),
    Case(R.SET_MEM_TABLE, "fewer fds", table(2, entry(), entry(BASE)), "2 regions, 1 fds", memory),
    Case(R.SET_MEM_TABLE, "more fds", table(1, entry()), "1 regions, 2 fds", many(2, memory)),
    Case(R.SET_MEM_TABLE, "fewer entries", table(2, entry()), "2 regions in 40", many(2, memory)),
    Case(
        R.SET_MEM_TABLE, "9 regions", table(9, *[entry()] * 8), "9 regions, 8 fds", many(8, memory)
    ),
    Case(
        R.SET_MEM_TABLE, "255 regions", table(255, *[entry()] * 8), "255 regions", many(8, memory)
    ),
    Case(
        R.SET_MEM_TABLE, "2^32-1 regions", table(0xFFFFFFFF, entry()), "4294967295 regions", memory
    ),
    Case(R.SET_MEM_TABLE, "the same twice", table(2, entry(), entry()), "overlap", many(2, memory)),
    Case(
        R.SET_MEM_TABLE,
        "overlap in their last page",
        table(2, entry(size=PAGE + 1), entry(ELSEWHERE + PAGE)),
        "overlap",
        many(2, memory),
    ),
    Case(R.ADD_MEM_REG, "no fd", region(), "0 fds, expected 1"),
    Case(R.ADD_MEM_REG, "2 fds", region(), "2 fds, expected 1", many(2, memory)),
    Case(R.ADD_MEM_REG, "without padding", entry(), "32 bytes, expected 40", memory),
    Case(R.ADD_MEM_REG, "no bytes", region(size=0), "memory region of 0 bytes", memory),
    Case(R.ADD_MEM_REG, "guest wraps", region(TOP, 2 * PAGE, at=USER), "memory region of", memory),
    Case(R.ADD_MEM_REG, "user wraps", region(at=TOP, size=2 * PAGE), "memory region of", memory),
    Case(
        R.ADD_MEM_REG, "offset wraps", region(offset=TOP, size=2 * PAGE), "memory region of", memory
    ),
    Case(R.ADD_MEM_REG, "2^64-1 bytes", region(0, (1 << 64) - 1, at=0), "beyond", memory),
    Case(
        R.ADD_MEM_REG, "its last page wraps", region(TOP, PAGE - 1, at=USER, offset=1), "", memory
    ),
    Case(R.ADD_MEM_REG, "guest unaligned", region(ELSEWHERE + 8), "on pages", memory),
    Case(R.ADD_MEM_REG, "offset unaligned", region(offset=8), "on pages", memory),
    Case(R.ADD_MEM_REG, "offset beyond the file", region(offset=SIZE), "beyond", memory),
    Case(R.ADD_MEM_REG, "offset of 2^63", region(offset=1 << 63), "beyond", memory),
    Case(R.ADD_MEM_REG, "size beyond the file", region(size=SIZE + PAGE), "beyond", memory),
    Case(R.ADD_MEM_REG, "64 TiB of 1 MiB", region(1 << 46, 1 << 46), "beyond", memory),
    Case(R.ADD_MEM_REG, "overlaps", region(BASE + PAGE), "overlap", memory, "memory"),
    Case(R.ADD_MEM_REG, "a pipe", region(), "is no memory", pipe_reader),
    Case(R.ADD_MEM_REG, "a socket", region(), "is no memory", unix_socket),
    Case(R.ADD_MEM_REG, "a directory", region(), "is no memory", directory),
    Case(R.ADD_MEM_REG, "an O_PATH", region(), "is no memory", path_only),
    Case(R.ADD_MEM_REG, "an eventfd", region(), "is no memory", eventfd),
    Case(R.ADD_MEM_REG, "an epoll", region(), "is no memory", epoll),
    Case(R.ADD_MEM_REG, "/dev/null", region(), "is no memory", device),
    Case(R.ADD_MEM_REG, "an empty file", region(), "beyond", empty_file),
    Case(R.ADD_MEM_REG, "a read-only file", region(), "not memory", read_only_memory),
    Case(R.REM_MEM_REG, "not there", region(), "no memory region of 4096 bytes"),
    Case(R.REM_MEM_REG, "another size", region(BASE), "no memory region", when="memory"),
    Case(R.REM_MEM_REG, "39 bytes", region()[:-1], "39 bytes, expected 40"),
]

VRINGS = [
    Case(R.SET_VRING_NUM, "index out of range", state(QUEUES, 8), "the device has 2"),
    Case(R.SET_VRING_NUM, "index 2^32-1", state(0xFFFFFFFF, 8), "the device has 2"),
    Case(R.SET_VRING_NUM, "4 bytes", bytes(4), "4 bytes, expected 8"),
    Case(R.SET_VRING_NUM, "12 bytes", bytes(12), "12 bytes, expected 8"),
    Case(R.SET_VRING_NUM, "while it runs", state(0, 8), "virtqueue 0 runs", when="live"),
    Case(R.SET_VRING_BASE, "index out of range", state(QUEUES, 0), "the device has 2"),
    Case(R.SET_VRING_BASE, "while it runs", state(0, 0), "virtqueue 0 runs", when="live"),
    Case(R.GET_VRING_BASE, "index out of range", state(QUEUES, 0), "the device has 2"),
    Case(R.GET_VRING_BASE, "no payload", b"", "0 bytes, expected 8"),
    Case(R.SET_VRING_ENABLE, "index out of range", state(QUEUES, 1), "the device has 2"),
    Case(R.SET_VRING_ADDR, "39 bytes", areas()[:-1], "39 bytes, expected 40"),
    Case(R.SET_VRING_ADDR, "no memory", areas(), "no memory region holds address"),
    Case(R.SET_VRING_ADDR, "index out of range", areas(QUEUES), "the device has 2", when="memory"),
    Case(
        R.SET_VRING_ADDR, "descriptors nowhere", areas(desc=0), "holds address 0x0", when="memory"
    ),
    Case(R.SET_VRING_ADDR, "avail behind", areas(avail=USER + SIZE), "no memory", when="memory"),
    Case(R.SET_VRING_ADDR, "used at 2^64-1", areas(used=(1 << 64) - 1), "no memory", when="memory"),
    Case(R.SET_VRING_ADDR, "guest physical", areas(desc=BASE), "no memory", when="memory"),
    Case(R.SET_VRING_ADDR, "while it runs", areas(), "virtqueue 0 runs", when="live"),
    Case(R.SET_VRING_KICK, "no fd", u64(0), "0 fds, expected 1"),
    Case(R.SET_VRING_KICK, "2 fds", u64(0), "2 fds, expected 1", many(2)),
    Case(R.SET_VRING_KICK, "an fd and none", u64(0x100), "1 fds, expected 0", eventfd),
    Case(R.SET_VRING_KICK, "polling", u64(0x100), "polling is not done here"),
    Case(R.SET_VRING_KICK, "index out of range", u64(QUEUES), "the device has 2", eventfd),
    Case(R.SET_VRING_KICK, "index 255", u64(0xFF), "the device has 2", eventfd),
    Case(R.SET_VRING_CALL, "no fd", u64(0), "0 fds, expected 1"),
    Case(R.SET_VRING_CALL, "8 fds", u64(0), "8 fds, expected 1", many(8)),
    Case(R.SET_VRING_CALL, "index out of range", u64(QUEUES), "the device has 2", eventfd),
    Case(R.SET_VRING_ERR, "no fd", u64(0), "0 fds, expected 1"),
    Case(R.SET_VRING_ERR, "index out of range", u64(QUEUES), "the device has 2", eventfd),
    *(
        Case(R.SET_VRING_KICK, f"{what} while live", u64(0), "", fds, "live")
        for what, fds in [
            ("a pipe", pipe_reader),
            ("a socket", unix_socket),
            ("a file", memory),
            ("a directory", directory),
            ("an O_PATH", path_only),
            ("an epoll", epoll),
            ("an inotify", inotify),
        ]
    ),
    *(
        Case(R.SET_VRING_CALL, f"{what} while live", u64(0), "", fds, "live")
        for what, fds in [
            ("a TCP socket", tcp_socket),
            ("a file", memory),
            ("a directory", directory),
            ("an O_PATH", path_only),
            ("an epoll", epoll),
            ("an inotify", inotify),
        ]
    ),
]

OTHERS = [
    Case(R.GET_CONFIG, "8 bytes", bytes(8), "GET_CONFIG: 8 bytes"),
    Case(R.GET_CONFIG, "less data", config(0, 60, bytes(59)), "60 bytes of config space in 59"),
    Case(R.GET_CONFIG, "more data", config(0, 60, bytes(61)), "60 bytes of config space in 61"),
    Case(R.GET_CONFIG, "2^32-1 bytes", config(0, 0xFFFFFFFF, bytes(60)), "bytes of config space"),
    Case(R.SET_CONFIG, "nothing", config(0, 0, b""), "config offset 0, 0 bytes"),
    Case(R.SET_CONFIG, "beyond", config(250, 200, bytes(200)), "config offset 250, 200 bytes"),
    Case(R.SET_CONFIG, "offset 2^32-1", config(0xFFFFFFFF, 1, b"x"), "config offset 4294967295"),
    Case(R.SET_CONFIG, "less data", config(0, 2, b"x"), "2 bytes of config space in 1"),
    Case(R.GET_INFLIGHT_FD, "19 bytes", bytes(19), "GET_INFLIGHT_FD: 19 bytes"),
    Case(R.GET_INFLIGHT_FD, "no queues", inflight(0, 0), "0 virtqueues of 16"),
    Case(R.GET_INFLIGHT_FD, "no descriptors", inflight(0, 2, 0), "2 virtqueues of 0"),
    Case(R.GET_INFLIGHT_FD, "65535 queues", inflight(0, 0xFFFF), "65535 virtqueues of 16"),
    Case(R.GET_INFLIGHT_FD, "65535 descriptors", inflight(0, 2, 0xFFFF), "2 virtqueues of 65535"),
    Case(R.SET_INFLIGHT_FD, "no fd", inflight(PAGE), "0 fds, expected 1"),
    Case(R.SET_INFLIGHT_FD, "2 fds", inflight(PAGE), "2 fds, expected 1", many(2, memory)),
    Case(R.SET_INFLIGHT_FD, "an offset", inflight(PAGE, offset=PAGE), "are not ours", memory),
    Case(R.SET_INFLIGHT_FD, "a longer struct", inflight(PAGE) + b"x", "25 bytes", memory),
    Case(R.SET_LOG_BASE, "not negotiated", bytes(16), "LOG_SHMFD was not negotiated", memory),
    Case(R.SET_BACKEND_REQ_FD, "no fd", b"", "0 fds, expected 1"),
    Case(R.SET_BACKEND_REQ_FD, "2 fds", b"", "2 fds, expected 1", many(2, unix_socket)),
    Case(R.SET_BACKEND_REQ_FD, "a file", b"", "neither a socket nor a pipe", memory),
    Case(R.SET_BACKEND_REQ_FD, "a directory", b"", "neither a socket nor a pipe", directory),
    Case(R.SET_BACKEND_REQ_FD, "an eventfd", b"", "neither a socket nor a pipe", eventfd),
    *(
        Case(code, "not served here", b"", f"{name} is not served here")
        for code, name in [
            (0, "request 0"),
            (19, "request 19"),  # SEND_RARP
            (20, "request 20"),  # NET_SET_MTU
            (22, "request 22"),  # IOTLB_MSG
            (23, "request 23"),  # SET_VRING_ENDIAN
            (26, "request 26"),  # CREATE_CRYPTO_SESSION
            (27, "request 27"),  # CLOSE_CRYPTO_SESSION
            (28, "request 28"),  # POSTCOPY_ADVISE
            (29, "request 29"),  # POSTCOPY_LISTEN
            (30, "request 30"),  # POSTCOPY_END
            (33, "request 33"),  # GPU_SET_SOCKET
            (35, "request 35"),  # VRING_KICK
            (41, "request 41"),  # GET_SHARED_OBJECT
            (42, "request 42"),  # SET_DEVICE_STATE_FD
            (43, "request 43"),  # CHECK_DEVICE_STATE
            (44, "request 44"),  # GET_SHMEM_CONFIG
            (99, "request 99"),
            (0xFFFFFFFF, "request 4294967295"),
        ]
    ),
]

CASES: Final = [*FEATURES, *MEMORY, *VRINGS, *OTHERS]
