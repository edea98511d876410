"""Dirty logging from end to end (vhost-user specification, "Migration"): a front end compares its
memory with the log. What changed and is not marked would be lost at a migration's other end."""

from __future__ import annotations

import os
import random
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vhost_user_front_end import USER, FrontEnd, state, u64
from vduse.control.features import Feature
from vduse.control.vhost_user import F_LOG_ALL, F_PROTOCOL_FEATURES, ProtocolFeature, Request
from vduse.testing.harness import BlkStack, blk_stack
from vduse.testing.rawdriver import T_GET_ID, T_IN, T_OUT, header
from vduse.testing.rings import NEXT, WRITE, Memory, PackedRing, SplitRing

PAGE = 4096
MEMORY = 1 << 20
GUEST = 0x40000
DISK = 1 << 20
#: Descriptors: the used ring is longer than a page.
SIZE = 1024
#: Offset of the requests' memory, and bytes of each.
BUFFERS, ROOM = 0x10000, 0x10000
#: Where in the log's file the log begins, and its bytes.
LOG_OFFSET, LOG_BYTES = 100, (GUEST + MEMORY) // PAGE // 8 + 1

FEATURES = Feature.VERSION_1 | F_PROTOCOL_FEATURES
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.LOG_SHMFD


class Guest:
    """A front end with one ring in its memory, and the log."""

    def __init__(self, path: str, *, packed: bool) -> None:
        self.front_end = FrontEnd(path)
        self.memory = Memory(MEMORY, GUEST)
        self.ring: SplitRing | PackedRing
        self.ring = (PackedRing if packed else SplitRing)(self.memory, 0, SIZE)
        self.packed = packed
        #: Where the ring starts.
        self.base = 1 << 15 | 1 << 31 if packed else 0
        self.features = FEATURES | (Feature.RING_PACKED if packed else 0)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_CLOEXEC)
        self.log = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(self.log, LOG_OFFSET + LOG_BYTES)

    def set(self, request: Request, payload: bytes, *fds: int) -> None:
        assert self.front_end.set(request, payload, *fds) == 0

    def agree(self, features: int = 0) -> None:
        self.set(Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL))
        self.set(Request.SET_FEATURES, u64(self.features | features))
        region = struct.pack("=8xQQQQ", GUEST, MEMORY, USER, 0)
        self.set(Request.ADD_MEM_REG, region, self.memory.fd)

    def start(self, *, logged: bool = False) -> None:
        self.set(Request.SET_VRING_NUM, state(0, SIZE))
        self.set(Request.SET_VRING_BASE, state(0, self.base))
        self.set_addr(logged=logged)
        self.set(Request.SET_VRING_CALL, u64(0), self.call)
        self.set(Request.SET_VRING_KICK, u64(0), self.kick)
        self.set(Request.SET_VRING_ENABLE, state(0, 1))

    def set_addr(self, *, logged: bool) -> None:
        desc, driver, device = (USER + iova - GUEST for iova in self.ring.areas)
        areas = (desc, device, driver, self.ring.areas[2] if logged else 0)
        self.set(Request.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, logged, *areas))

    def set_log_base(self) -> None:
        self.set(Request.SET_LOG_BASE, struct.pack("=QQ", LOG_BYTES, LOG_OFFSET), self.log)

    def log_all(self, *, on: bool) -> None:
        """As QEMU: the features, and then the ring again."""
        self.set(Request.SET_FEATURES, u64(self.features | (F_LOG_ALL if on else 0)))
        self.set_addr(logged=on)

    def take_log(self) -> set[int]:
        """The pages of the memory that are marked, which are not any more."""
        bits = os.pread(self.log, LOG_BYTES, LOG_OFFSET)
        os.pwrite(self.log, bytes(LOG_BYTES), LOG_OFFSET)
        marked = {page for page in range(8 * LOG_BYTES) if bits[page // 8] >> page % 8 & 1}
        first = GUEST // PAGE
        assert not marked or min(marked) >= first
        return {page - first for page in marked}

    def snapshot(self) -> bytes:
        return self.memory.read(0, MEMORY)

    def offer(self, chain: list[tuple[int, int, int]], slot: int) -> None:
        """One chain; in a split ring its descriptors begin at 8 * ``slot``."""
        if isinstance(self.ring, PackedRing):
            self.ring.offer(slot, *chain)
            return
        for place, (at, length, flags) in enumerate(chain):
            more = NEXT if place + 1 < len(chain) else 0
            self.ring.descriptor(8 * slot + place, at, length, flags | more, 8 * slot + place + 1)
        self.ring.offer(8 * slot)

    def wait(self, lengths: list[int]) -> None:
        """Until as many chains are used; ``lengths`` by slot, in descriptors."""
        os.eventfd_write(self.kick, 1)
        used = 0
        while used < len(lengths):
            if isinstance(self.ring, SplitRing):
                found = len(self.ring.take_used())
            else:
                found = int(self.ring.take_used_of(lambda id: lengths[id]) is not None)
            used += found
            if not found:
                assert select.select([self.call], [], [], 60)[0], "nothing came"
                os.eventfd_read(self.call)

    def close(self) -> None:
        self.front_end.close()
        self.memory.close()
        for fd in (self.kick, self.call, self.log):
            os.close(fd)

    def stop(self) -> None:
        """The ring, where it stands; the device has finished with the memory. The ring is as it was
        before :meth:`start`, but for its position."""
        reply = self.front_end.get(Request.GET_VRING_BASE, state(0, 0))
        self.base = struct.unpack("=II", reply)[1]

    def ring_pages(self) -> set[int]:
        """What the device may write of the ring."""
        desc, _, device = (iova - GUEST for iova in self.ring.areas)
        used = _pages(device, 4 if self.packed else 6 + 8 * SIZE)
        return used | (_pages(desc, 16 * SIZE) if self.packed else set())


def _pages(start: int, length: int) -> set[int]:
    return set(range(start // PAGE, (start + length - 1) // PAGE + 1))


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def stack(tmp_path: Path, packed: bool) -> Iterator[BlkStack]:
    """A disk of random bytes, its device in a process of its own."""
    image = tmp_path / "disk"
    image.write_bytes(random.Random(1).randbytes(DISK))
    with blk_stack(
        backend=str(image), queue_size=SIZE, packed=packed, driver="vhost_vdpa", where="child"
    ) as stack:
        yield stack


@pytest.fixture
def guest(stack: BlkStack, packed: bool) -> Iterator[Guest]:
    with stack.vhost_user() as path:
        guest = Guest(path, packed=packed)
        yield guest
        guest.close()


Chain = list[tuple[int, int, int]]


def request(guest: Guest, chance: random.Random, slot: int) -> Chain:
    """A request of a random kind in random pieces, some beyond the disk's end."""
    at = BUFFERS + slot * ROOM
    kind = chance.choice([T_IN, T_IN, T_OUT, T_GET_ID, 77])
    guest.memory.write(at, header(kind, chance.randrange(DISK // 512 + 64)))
    chain = [(GUEST + at, 16, 0)]
    data_at = at + PAGE + chance.randrange(PAGE)
    for _ in range(chance.randrange(4)):
        length = 512 * chance.randint(1, 20)
        guest.memory.write(data_at, b"\xee" * length)
        chain.append((GUEST + data_at, length, 0 if kind == T_OUT else WRITE))
        data_at += length + chance.randrange(PAGE)
    guest.memory.write(at + ROOM - 1, b"\xff")
    return [*chain, (GUEST + at + ROOM - 1, 1, WRITE)]


def test_all_that_changes_is_marked(guest: Guest) -> None:
    chance = random.Random(2)
    guest.agree()
    guest.start()
    guest.set_log_base()
    guest.log_all(on=True)
    for _ in range(60):
        chains = [request(guest, chance, slot) for slot in range(chance.randint(1, 8))]
        # In this order: what is written in between is marked and not seen as a change.
        guest.take_log()
        before = guest.snapshot()
        for slot, chain in enumerate(chains):
            guest.offer(chain, slot)
        guest.wait([len(chain) for chain in chains])
        guest.stop()
        after, marked = guest.snapshot(), guest.take_log()
        drivers = set() if guest.packed else _pages(0, 16 * SIZE)
        changed = {
            page
            for page in range(MEMORY // PAGE)
            if before[page * PAGE : (page + 1) * PAGE] != after[page * PAGE : (page + 1) * PAGE]
        }
        assert changed - drivers <= marked
        written = [_pages(at - GUEST, size) for chain in chains for at, size, flag in chain if flag]
        assert set().union(*written) <= marked <= set().union(guest.ring_pages(), *written)
        guest.start(logged=True)
    guest.log_all(on=False)
    guest.take_log()
    chain = request(guest, chance, 0)
    guest.offer(chain, 0)
    guest.wait([len(chain)])
    guest.stop()
    assert guest.take_log() == set()


def test_a_device_that_takes_over_marks_what_the_dead_one_may_have_written(
    guest: Guest, stack: BlkStack
) -> None:
    chance = random.Random(3)
    guest.agree(F_LOG_ALL)
    guest.set_log_base()
    guest.start(logged=True)
    stack.kill_device()
    guest.take_log()
    stack.replace_device()
    assert guest.take_log() == guest.ring_pages()
    chain = request(guest, chance, 0)
    guest.offer(chain, 0)
    guest.wait([len(chain)])
    guest.stop()
    written = set().union(*(_pages(at - GUEST, size) for at, size, flag in chain if flag))
    assert written <= guest.take_log() <= written | guest.ring_pages()
