"""One driver's life on a device: negotiated, virtqueues in memory full of canaries, live, reset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vduse.check import rules
from vduse.check.buffers import Buffers
from vduse.check.canvas import GUARD, Canvas
from vduse.check.errors import Missed, Stalled
from vduse.check.queue import Queue
from vduse.check.request import Request
from vduse.check.stage import LIVE, Stage
from vduse.control.abi import ACCESS_RW
from vduse.control.features import Feature, feature_names

#: IOVA of the first mapped byte.
BASE = 1 << 32
#: Bytes that are mapped.
SPAN = 4 << 20
#: Most descriptors of a virtqueue here.
QUEUE_SIZE = 64
#: Descriptors that a request takes at most.
_SHORTEST = 8
#: Bytes of canaries between two buffers.
_GAP = 64
_RING = 4096


class Session:
    """Made by :func:`live`."""

    def __init__(self, stage: Stage, features: int, queues: int, size: int) -> None:
        self.stage = stage
        #: Negotiated feature bits.
        self.features = features
        self.size = size
        self.canvas = Canvas(SPAN, BASE)
        self._next = GUARD + queues * _RING
        self._first = self._next
        self.buffers = Buffers(self.canvas, self.allocate)
        self.queues = [
            Queue(stage, self.canvas, self.buffers, GUARD + at * _RING, at, size, features)
            for at in range(queues)
        ]

    @property
    def queue(self) -> Queue:
        """The first virtqueue."""
        return self.queues[0]

    @property
    def packed(self) -> bool:
        return bool(self.features & Feature.RING_PACKED)

    def allocate(self, length: int) -> int:
        """An offset in the memory, on 16 bytes, canaries before and behind; what was there is
        free once no request is out."""
        if self._next + length + 2 * _GAP > GUARD + SPAN:
            self._next = self._first
        at = -(-(self._next + _GAP) // 16) * 16
        self._next = at + length
        return at

    def set_up(self, queue: Queue, *, base: int | None = None) -> None:
        """Tells the framework where a virtqueue lies; it is not ready yet."""
        driver = self.stage.driver
        driver.set_vring_num(queue.index, queue.size)
        driver.set_vring_addr(queue.index, *queue.ring.areas)
        driver.set_vring_base(queue.index, queue.start_base if base is None else base)
        driver.set_vring_call(queue.index, queue.call)

    def enable(self, queue: Queue) -> None:
        """Makes it ready."""
        self.stage.driver.set_vring_enable(queue.index, True)

    def map(self) -> None:
        """Maps the memory."""
        with self.stage.messages():
            self.stage.driver.iotlb_update(BASE, SPAN, self.canvas.fd, GUARD, ACCESS_RW)

    def kick(self, queue: Queue) -> None:
        """Kicks, wanted or not."""
        self.stage.driver.kick(queue.index)

    def run(self, queue: Queue, count: int) -> list[Request]:
        """Kicks and waits for ``count`` requests; looks at the canaries."""
        self.kick(queue)
        done = queue.wait(count)
        self.look()
        return done

    def do(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> Request:
        """One request on the first virtqueue, waited for."""
        self.queue.submit(kind, sector, data, room)
        return self.run(self.queue, 1)[0]

    def look(self) -> None:
        """At the canaries."""
        self.stage.ledger.reach(rules.MEMORY_OUTSIDE, rules.MEMORY_READABLE)
        trespass = self.canvas.trespass()
        if trespass is not None:
            rule = rules.MEMORY_READABLE if trespass.readable else rules.MEMORY_OUTSIDE
            self.stage.ledger.fail(rule, trespass.text)

    def close(self) -> None:
        """Resets the device where it lives, and frees everything."""
        try:
            if self.stage.watch.open and not self.stage.broken:
                self.stage.reset()
                self.stage.unmap()
        finally:
            for queue in self.queues:
                queue.close()
            self.canvas.close()


def queue_size(stage: Stage) -> int:
    """Descriptors of each virtqueue here."""
    return 1 << (min(stage.max_size, QUEUE_SIZE).bit_length() - 1)


@contextmanager
def agreed(
    stage: Stage, *, packed: bool = False, without: int = 0, queues: int = 1
) -> Iterator[Session]:
    """A session up to FEATURES_OK and the mapped memory: nothing is ready. Stalled: the device
    refuses what it offers but ``without``."""
    size = queue_size(stage)
    if stage.is_blk and size < _SHORTEST:
        raise Missed(f"virtqueues of fewer than {_SHORTEST} descriptors hold no request")
    without |= 0 if packed else Feature.RING_PACKED
    features = stage.usable & ~int(without)
    if not stage.agree(features):
        names = ", ".join(feature_names(features, stage.driver.get_device_id()))
        stage.ledger.fail(rules.FEATURES_SUBSET, f"FEATURES_OK was refused for {names}")
        raise Stalled("the device refuses what it offers")
    session = Session(stage, features, queues, size)
    try:
        session.map()
        yield session
    finally:
        session.close()


@contextmanager
def live(
    stage: Stage,
    *,
    packed: bool = False,
    without: int = 0,
    queues: int = 1,
    ready: Sequence[int] | None = None,
    base: int | None = None,
) -> Iterator[Session]:
    """A session up to DRIVER_OK, with the virtqueues ``ready`` (None: all), each from ``base``.
    Stalled: the device refuses."""
    with agreed(stage, packed=packed, without=without, queues=queues) as session:
        for queue in session.queues:
            if base is not None:
                queue.start_at(base)
            session.set_up(queue, base=base)
            if ready is None or queue.index in ready:
                session.enable(queue)
        go_live(session)
        yield session


def go_live(session: Session) -> None:
    """DRIVER_OK. Stalled."""
    stage = session.stage
    stage.ledger.reach(rules.DRIVER_OK)
    if not stage.set_status(LIVE):
        stage.ledger.fail(rules.DRIVER_OK, f"refused\n{stage.watch.tail()}")
        raise Stalled("DRIVER_OK was refused")
