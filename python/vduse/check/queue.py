"""One virtqueue of the checking driver: makes requests available, and judges what comes back."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from time import monotonic, sleep

from vduse.bus.driver import PACKED_START
from vduse.check import rules
from vduse.check.buffers import Buffers, Layout
from vduse.check.canvas import Canvas
from vduse.check.errors import Stalled
from vduse.check.notifications import Notifications
from vduse.check.request import PENDING, Request
from vduse.check.stage import Stage
from vduse.control.features import Feature
from vduse.testing.rawdriver import Part
from vduse.testing.rings import (
    AVAIL,
    DESCRIPTOR_SIZE,
    NEXT,
    USED,
    PackedRing,
    SplitRing,
    Used,
)

#: Seconds between two looks at what no eventfd tells.
_LOOK = 0.05
_POLL = 0.005
#: Used elements judged at a time: a device may write any index.
_BURST = 1 << 12


class Queue:
    """Virtqueue ``index`` in a ring at ``offset`` of ``canvas``."""

    def __init__(
        self,
        stage: Stage,
        canvas: Canvas,
        buffers: Buffers,
        offset: int,
        index: int,
        size: int,
        features: int,
    ) -> None:
        """``size``: descriptors; ``features``: as negotiated."""
        self.index = index
        self.size = size
        self.packed = bool(features & Feature.RING_PACKED)
        kind = PackedRing if self.packed else SplitRing
        self.ring: SplitRing | PackedRing = kind(canvas, offset, size)
        self._canvas = canvas
        self._ledger = stage.ledger
        self._patience = stage.timing.patience
        self._check_alive = stage.check_alive
        #: Where the requests' buffers come from.
        self.buffers = buffers
        self.notify = Notifications(self.ring, bool(features & Feature.EVENT_IDX))
        #: The driver's eventfd for interrupts (owned by this object).
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: Rules that a missing and a doubled completion break; recovery has its own.
        self.returned = rules.USED_RETURNED
        self.once = rules.USED_ONCE
        #: Requests that the device has, by head or buffer id.
        self.outstanding: dict[int, Request] = {}
        #: Ids that came back once, and were not offered again.
        self._done: set[int] = set()
        self._free = list(range(size))
        self._polling = stage.ledger.failed(rules.IRQ_ANNOUNCED)
        #: Used elements that were taken, those that name no request too.
        self._taken = 0
        self._lay_out(offset)

    def close(self) -> None:
        """Closes the eventfd."""
        os.close(self.call)

    @property
    def where(self) -> str:
        """For evidence."""
        return f"virtqueue {self.index} ({'packed' if self.packed else 'split'})"

    @property
    def base(self) -> int:
        """VHOST_SET_VRING_BASE of where the ring stands."""
        if isinstance(self.ring, SplitRing):
            return self.ring.avail_index
        at = self.ring.next_avail | self.ring.avail_wrap << 15
        return at | at << 16

    def start_at(self, base: int) -> None:
        """Before the start: the ring stands elsewhere, with wrap counter 0 where it is packed."""
        if isinstance(self.ring, SplitRing):
            self.ring.start_at(base)
            return
        index = base & 0x7FFF
        self.ring.start_at(index, False)
        for slot in range(index, self.size):
            # As the lap before, with wrap counter 1, has left them.
            self.ring.descriptor(slot, 0, 0, 0, AVAIL | USED)

    @property
    def start_base(self) -> int:
        """Of a fresh ring."""
        return PACKED_START if self.packed else 0

    @property
    def room(self) -> int:
        """Free descriptors."""
        return len(self._free)

    # --- requests ---------------------------------------------------------------------------

    def submit(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        room: int = 0,
        *,
        layout: Layout = "plain",
        indirect: bool = False,
    ) -> Request:
        """Makes a legal request available."""
        request = Request(kind, sector, len(data), room)
        chain = self.buffers.chain(request, data, layout)
        return self.offer(request, chain, indirect=indirect)

    def offer(self, request: Request, chain: Sequence[Part], *, indirect: bool = False) -> Request:
        """Makes a chain available, whatever is in it."""
        request.chain = list(chain)
        if indirect:
            chain = [self.buffers.table(self.ring, chain)]
        request.descriptors = taken = [self._free.pop(0) for _ in chain]
        self.outstanding[taken[0]] = request
        self._done.discard(taken[0])
        if isinstance(self.ring, PackedRing):
            self.ring.offer(taken[0], *chain)
            return request
        for place, (addr, length, flags) in enumerate(chain):
            last = place + 1 == len(chain)
            following = 0 if last else taken[place + 1]
            more = 0 if last else NEXT
            self.ring.descriptor(taken[place], addr, length, flags | more, following)
        self.ring.offer(taken[0])
        return request

    # --- what comes back --------------------------------------------------------------------

    def reap(self) -> list[Request]:
        """What was used since the last look, judged."""
        done: list[Request] = []
        for _ in range(_BURST):
            used = self._next_used()
            if used is None:
                break
            self._taken += 1
            if (request := self._finish(used)) is not None:
                done.append(request)
        return done

    def wait(self, count: int) -> list[Request]:
        """Waits for ``count`` requests, by interrupt. Stalled: they do not come; the rule has
        failed."""
        done: list[Request] = []
        deadline = monotonic() + self._patience
        while True:
            self.notify.want_irq()
            taken = self._taken
            done += self.reap()
            if len(done) >= count:
                self._ledger.reach(self.returned, rules.IRQ_ANNOUNCED)
                return done
            if self._taken != taken:
                continue  # the next interrupt is to be asked for behind them
            if monotonic() >= deadline:
                self._judge_late(len(done), count)
            elif self.wait_irq(_POLL if self._polling else deadline - monotonic()):
                continue
            elif not self._polling and (late := self.reap()):
                done += late
                self._polling = True
                self._ledger.fail(
                    rules.IRQ_ANNOUNCED,
                    f"{self.where}: {len(late)} used elements and no interrupt within "
                    f"{self._patience:g} s; the first: {late[0]}",
                )
                deadline = monotonic() + self._patience

    def watch(self, count: int) -> list[Request]:
        """Waits for ``count`` requests by looking at the ring, whatever interrupts come.
        Stalled."""
        done: list[Request] = []
        deadline = monotonic() + self._patience
        while len(done) < count:
            if monotonic() >= deadline:
                self._judge_late(len(done), count)
            self._check_alive()
            sleep(_POLL)
            done += self.reap()
        return done

    def watch_for(self, request: Request, seconds: float) -> bool:
        """Whether one request is used within ``seconds``, by looking at the ring. Died."""
        deadline = monotonic() + seconds
        while request in self.outstanding.values() and monotonic() < deadline:
            self._check_alive()
            sleep(_POLL)
            self.reap()
        return request not in self.outstanding.values()

    def rest(self, seconds: float) -> None:
        """Nothing is done, and interrupts are left where they are. Died."""
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0:
            self._check_alive()
            sleep(min(left, _LOOK))

    def wait_irq(self, timeout: float) -> bool:
        """Whether an interrupt came within ``timeout`` seconds; takes it. Died."""
        deadline = monotonic() + timeout
        poll = select.poll()
        poll.register(self.call, select.POLLIN)
        while (left := deadline - monotonic()) > 0:
            self._check_alive()
            if poll.poll(min(left, _LOOK) * 1000):
                self.irqs()
                return True
        return False

    def irqs(self) -> int:
        """Takes the interrupts that came."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0

    # --- inside -----------------------------------------------------------------------------

    def _lay_out(self, offset: int) -> None:
        base = self._canvas.iova
        desc, driver, device = (area - base for area in self.ring.areas)
        self._canvas.write(offset, bytes(self.ring.end - offset))
        table = DESCRIPTOR_SIZE * self.size
        if self.packed:
            self._canvas.grant(desc, table)
            self._canvas.name(driver, 4, f"{self.where}: the driver's event suppression area")
            self._canvas.grant(device, 4)
            return
        self._canvas.name(desc, table, f"{self.where}: the descriptor table")
        self._canvas.name(driver, 6 + 2 * self.size, f"{self.where}: the available ring")
        self._canvas.grant(device, 6 + 8 * self.size)

    def _next_used(self) -> Used | None:
        if isinstance(self.ring, SplitRing):
            return self.ring.take_one()
        return self.ring.take_used_of(self._slots)

    def _slots(self, id: int) -> int:
        request = self.outstanding.get(id)
        return 1 if request is None else len(request.descriptors)

    def _finish(self, used: Used) -> Request | None:
        self._ledger.reach(rules.USED_ID, self.once)
        request = self.outstanding.pop(used.id, None)
        if request is None:
            shown = f"{self.where}: used element of id {used.id}, length {used.length}"
            if used.id in self._done:
                self._ledger.fail(self.once, f"{shown}: it was used before")
            else:
                self._ledger.fail(rules.USED_ID, f"{shown}: not made available")
            if self.packed:
                raise Stalled("the packed ring's position is lost")
            return None
        self._done.add(used.id)
        self._free += request.descriptors
        request.used_length = used.length
        request.status = self._canvas.read(request.status_at, 1)[0] if request.status_at else 0
        request.data = b"".join(self._canvas.read(at, size) for at, size in request.data_at)
        for at in request.granted:
            self._canvas.withdraw(at)
        self._judge(request)
        return request

    def _judge(self, request: Request) -> None:
        if not request.status_at:
            return  # no chain of a legal request
        self._ledger.reach(rules.USED_LENGTH, rules.BLK_STATUS)
        shown = f"{self.where}: {request}: status {request.status:#04x}"
        if not request.answered:
            written = "" if request.status != PENDING else ", as it was before: not written"
            self._ledger.fail(rules.BLK_STATUS, shown + written)
        exact = request.status == 0
        if request.used_length > request.writable or (
            exact and request.used_length != request.writable
        ):
            self._ledger.fail(
                rules.USED_LENGTH,
                f"{shown}, used length {request.used_length}, device-writable bytes "
                f"{request.writable}",
            )

    def _judge_late(self, done: int, count: int) -> None:
        first = next(iter(self.outstanding.values()), "none of ours")
        self._ledger.fail(
            self.returned,
            f"{self.where}: {done} of {count} requests were used within {self._patience:g} s; "
            f"still out: {first}",
        )
        raise Stalled("requests are not used")
