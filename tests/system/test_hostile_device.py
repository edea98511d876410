"""A device that answers our virtio-blk driver with garbage: the driver gives the device up and
says why, or fails the one request; it reads and writes nothing outside its memory."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from vduse import _native
from vduse.control.features import BlkFeature, Feature
from vduse.devices.blk_config import BlkConfig
from vduse.testing.rings import AVAIL, USED, WRITE

SIZE = 8
_ARENA = 1 << 20
_IOVA = 1 << 32
_FEATURES = Feature.VERSION_1 | Feature.ACCESS_PLATFORM | Feature.INDIRECT_DESC | BlkFeature.FLUSH
_LIMIT = 60.0


class Fake:
    """A driver on an arena, and the device's hands in the same memory."""

    def __init__(self, packed: bool) -> None:
        self.packed = packed
        features = int(_FEATURES) | (Feature.RING_PACKED if packed else 0)
        self.arena = _native.Arena(_ARENA, _IOVA)
        self.line = _native.VqLine()
        config = BlkConfig(capacity=1024).pack()
        self.driver = _native.BlkDriver(self.arena, features, config, [SIZE], [self.line])
        self.areas = [area - _IOVA for area in self.driver.areas(0)]
        self.driver.start()
        self._used = 0

    def read(self, offset: int, length: int) -> bytes:
        return self.arena.read(offset, length)

    def head(self, position: int = 0) -> int:
        """Id of the request that was made available there."""
        if self.packed:
            return int.from_bytes(self.read(self.areas[0] + 16 * position + 12, 2), "little")
        return int.from_bytes(self.read(self.areas[1] + 4 + 2 * position, 2), "little")

    def status_at(self) -> int:
        """Offset of the status byte of the first request: in its table the last descriptor."""
        addr, length = struct.unpack("<QI", self.read(self.areas[0] + 16 * self._slot, 12))
        table = self.read(addr - _IOVA, length)
        (status,) = struct.unpack_from("<Q", table, length - 16)
        return int(status - _IOVA)

    @property
    def _slot(self) -> int:
        return 0 if self.packed else self.head()

    def use(self, id: int, length: int) -> None:
        """Writes one used element and publishes it."""
        if self.packed:
            at = self.areas[0] + 16 * self._used
            self.arena.write(at + 8, struct.pack("<IH", length & 0xFFFF_FFFF, id & 0xFFFF))
            self.arena.write(at + 14, struct.pack("<H", AVAIL | USED | WRITE))
            self._used += 1
            return
        at = self.areas[2]
        self.arena.write(at + 4 + 8 * (self._used % SIZE), struct.pack("<II", id, length))
        self._used += 1
        self.set_used_index(self._used)

    def set_used_index(self, index: int) -> None:
        self.arena.write(self.areas[2] + 2, struct.pack("<H", index & 0xFFFF))

    def answer(self, status: int, length: int = 513) -> None:
        """A right answer with any status byte."""
        self.arena.write(self.status_at(), bytes([status]))
        self.use(self.head(), length)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    fake = Fake(request.param)
    yield fake
    fake.driver.stop(errno.ENODEV)


def read_one(fake: Fake) -> int:
    """Starts a read; its token."""
    (token,) = fake.driver.submit([("read", 0, bytearray(512))])
    return token


class Case(NamedTuple):
    """What the device does with one request in flight, and why the driver gives it up."""

    name: str
    act: Callable[[Fake], None]
    reason: str
    #: In which formats it can be said.
    formats: tuple[bool, ...] = (False, True)


def _never_given(id: int) -> str:
    return f"the device used buffer {id}, which it was never given"


CASES = [
    Case("2.7.8 an id past the queue", lambda f: f.use(SIZE, 1), _never_given(SIZE)),
    Case("2.7.8 id 65535", lambda f: f.use(0xFFFF, 1), _never_given(0xFFFF)),
    Case(
        "2.7.8 id 2^32 - 1",
        lambda f: f.use(0xFFFF_FFFF, 1),
        _never_given(0xFFFF_FFFF),
        formats=(False,),
    ),
    Case("2.7.8 an id not in flight", lambda f: f.use(f.head() ^ 1, 1), "which it was never given"),
    Case(
        "2.7.8 more bytes than there was room for",
        lambda f: f.use(f.head(), 514),
        "the device claims 514 bytes written into 513",
    ),
    Case(
        "2.7.8 2^32 - 1 bytes",
        lambda f: f.use(f.head(), 0xFFFF_FFFF),
        "the device claims 4294967295 bytes written into 513",
    ),
    Case(
        "2.7.8 used index runs ahead",
        lambda f: f.set_used_index(2),
        "used index 2 runs ahead of what was handed out",
        formats=(False,),
    ),
    Case(
        "2.7.8 used index goes back",
        lambda f: f.set_used_index(0xFFFF),
        "used index 65535 runs ahead of what was handed out",
        formats=(False,),
    ),
]


@pytest.mark.parametrize(
    ("case", "fake"),
    [(case, packed) for case in CASES for packed in case.formats],
    ids=lambda each: each.name if isinstance(each, Case) else ("split", "packed")[each],
    indirect=["fake"],
)
def test_the_driver_gives_the_device_up(fake: Fake, case: Case) -> None:
    token = read_one(fake)
    case.act(fake)
    fake.line.inject()
    assert fake.driver.reap(1, _LIMIT) == [(token, -errno.EIO)]
    with pytest.raises(OSError, match=case.reason) as error:
        fake.driver.flush()
    assert error.value.errno == errno.EIO


def test_a_request_that_is_used_twice(fake: Fake) -> None:
    tokens = [read_one(fake), read_one(fake)]
    fake.answer(0)
    fake.line.inject()
    assert fake.driver.reap(1, _LIMIT) == [(tokens[0], 512)]
    first = fake.head()
    fake.use(first, 513)
    fake.line.inject()
    assert fake.driver.reap(1, _LIMIT) == [(tokens[1], -errno.EIO)]
    with pytest.raises(OSError, match=_never_given(first)):
        fake.driver.flush()


@pytest.mark.parametrize(
    ("status", "result"),
    [(0, 512), (1, -errno.EIO), (2, -errno.EOPNOTSUPP), (3, -errno.EIO), (255, -errno.EIO)],
)
def test_s5_2_6_status(fake: Fake, status: int, result: int) -> None:
    """Any status is one: the driver goes on."""
    token = read_one(fake)
    fake.answer(status)
    fake.line.inject()
    assert fake.driver.reap(1, _LIMIT) == [(token, result)]


def test_a_status_that_was_not_written_is_an_error(fake: Fake) -> None:
    token = read_one(fake)
    fake.use(fake.head(), 513)
    fake.line.inject()
    assert fake.driver.reap(1, _LIMIT) == [(token, -errno.EIO)]


def test_irqs_for_nothing(fake: Fake) -> None:
    token = read_one(fake)
    for _ in range(1000):
        fake.line.inject()
    assert fake.driver.reap(1, 0.0) == []
    fake.answer(0)
    fake.line.inject()
    assert fake.driver.reap(1, _LIMIT) == [(token, 512)]


def test_memory_taken_away_under_the_driver(fake: Fake) -> None:
    token = read_one(fake)
    fake.arena.truncate(0)
    fake.line.inject()
    assert fake.driver.reap(1, _LIMIT) == [(token, -errno.EIO)]
    with pytest.raises(OSError, match="taken away"):
        fake.driver.flush()


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_from_the_device(fake: Fake, seed: int) -> None:
    """Each request ends once, at the latest when the driver is stopped."""
    source = random.Random(seed)
    tokens = {read_one(fake) for _ in range(SIZE // 2)}
    ended: list[int] = []
    for _ in range(200):
        area = source.choice(fake.areas)
        offset = area + source.randrange(16 * SIZE)
        fake.arena.write(
            offset, source.choice([source.randbytes(2), bytes([source.randrange(9), 0])])
        )
        fake.line.inject()
        ended += [token for token, _ in fake.driver.reap(0, 0.0)]
    fake.driver.stop(errno.ENODEV)
    ended += [token for token, _ in fake.driver.reap(len(tokens) - len(ended), _LIMIT)]
    assert sorted(ended) == sorted(tokens)


@pytest.mark.parametrize(
    "config",
    [b"", bytes(7), bytes(60), BlkConfig(capacity=(1 << 64) - 1).pack()],
    ids=["empty", "short", "zeroes", "2^64 - 1 sectors"],
)
def test_s5_2_4_config_space_of_any_bytes(config: bytes) -> None:
    arena = _native.Arena(_ARENA, _IOVA)
    try:
        driver = _native.BlkDriver(arena, int(_FEATURES), config, [SIZE], [_native.VqLine()])
    except OSError as error:
        assert error.errno == errno.EINVAL
        return
    driver.start()
    with pytest.raises(OSError) as refused:
        driver.pwrite(driver.size, bytes(512))
    assert refused.value.errno == errno.EINVAL
    driver.stop(errno.ENODEV)
