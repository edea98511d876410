"""Daemons that do one thing wrong, each named for what it does."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tests.unit.check_device import Mapped, ModelBlk
from tests.unit.check_ring import BadChain, Chain, DeviceQueue
from vduse.channel.packet import send_packet
from vduse.control import abi
from vduse.control.abi import DevRequest, DevResponse, UpdateIotlb, encode_vq_state
from vduse.control.features import BlkFeature, Feature, Status
from vduse.testing.rawdriver import S_IOERR, S_OK, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES


class CutAnswer(ModelBlk):
    def respond(self, response: DevResponse) -> None:
        sock: Any = vars(self.channel)["_messages"]
        send_packet(sock, response.pack()[:-1])
        super().respond(response)


class ReservedInAnswer(ModelBlk):
    def respond(self, response: DevResponse) -> None:
        super().respond(replace(response, reserved=b"\1" + bytes(15)))
        super().respond(response)


class ResultSeven(ModelBlk):
    def unknown(self, request: DevRequest) -> None:
        self.respond(DevResponse(request.request_id, 7))


class AnswersAnother(ModelBlk):
    def respond(self, response: DevResponse) -> None:
        super().respond(replace(response, request_id=response.request_id + 1000))
        super().respond(response)


class AnswersTwice(ModelBlk):
    def respond(self, response: DevResponse) -> None:
        super().respond(response)
        super().respond(response)


class NeverAnswersUpdates(ModelBlk):
    def handle(self, request: DevRequest) -> None:
        if not (isinstance(request.message, UpdateIotlb) and self.queues):
            super().handle(request)


class AgreesToAnyMessage(ModelBlk):
    def unknown(self, request: DevRequest) -> None:
        self.respond(self.answer(request, True))


class ReservedInSetup(ModelBlk):
    def set_up(self) -> None:
        calls: Any = vars(self.channel)["_calls"]
        calls.call(abi.Ioctl.VQ_SETUP, abi.VqConfig(0, 64, reserved=b"\1" * 22).pack(), [])
        super().set_up()


class OneQueueSetUp(ModelBlk):
    def set_up(self) -> None:
        self.channel.vq_setup(0, self.SIZE)


class OddSize(ModelBlk):
    SIZE = 48

    def config(self, **changes: int) -> bytes:
        return super().config(seg_max=40, **changes)


class TwoDescriptors(ModelBlk):
    """It keeps the rules, but no request goes in there."""

    SIZE = 2

    def config(self, **changes: int) -> bytes:
        return super().config(seg_max=1, **changes)


class EndlessBlocks(ModelBlk):
    """Nobody has so much memory."""

    def config(self, **changes: int) -> bytes:
        return super().config(blk_size=1 << 31, capacity=(1 << 64) - 1)


class ShortSegments(ModelBlk):
    def config(self, **changes: int) -> bytes:
        return super().config(size_max=512)


class RefusesResets(ModelBlk):
    def set_status(self, status: int) -> bool:
        return status != 0 and super().set_status(status)


class Legacy(ModelBlk):
    FEATURES = ModelBlk.FEATURES & ~int(Feature.VERSION_1)


class ShortConfig(ModelBlk):
    def config(self, **changes: int) -> bytes:
        return super().config(**changes)[:50]


class OddBlock(ModelBlk):
    def config(self, **changes: int) -> bytes:
        return super().config(blk_size=1000)


class ManySegments(ModelBlk):
    def config(self, **changes: int) -> bytes:
        return super().config(seg_max=200)


class NineQueues(ModelBlk):
    def config(self, **changes: int) -> bytes:
        return super().config(num_queues=9)


class Resizes(ModelBlk):
    """Tells its driver: it keeps the rules."""

    changes = 0

    def kick(self, index: int) -> None:
        if self.live:
            self.changes += 1
            opt_io_size = 28
            self.channel.dev_set_config(opt_io_size, self.changes.to_bytes(4, "little"))
            self.announce()
        super().kick(index)

    def announce(self) -> None:
        while True:
            # EINVAL until the framework has taken note of the answer to DRIVER_OK.
            with suppress(OSError):
                self.channel.dev_inject_config_irq()
                return
            time.sleep(0.001)


class ResizesInSilence(Resizes):
    def announce(self) -> None:
        pass


class TakesAnyFeatures(ModelBlk):
    def takes(self, features: int) -> bool:
        return True


class WantsEventIdx(ModelBlk):
    def takes(self, features: int) -> bool:
        return super().takes(features) and bool(features & Feature.EVENT_IDX)


class NeverStarts(ModelBlk):
    def start(self) -> bool:
        return False


class StartsUnmapped(ModelBlk):
    def enable(self, index: int) -> None:
        if self.channel.vq_get_info(index).num > self.SIZE:
            super().enable(index)
        else:
            with suppress(BadChain):
                super().enable(index)


class StartsTooLong(ModelBlk):
    def enable(self, index: int) -> None:
        info = self.channel.vq_get_info(index)
        if info.ready:
            self.queues[index] = DeviceQueue(self.memory, info, self.channel.dev_get_features())


class EarlyIrq(ModelBlk):
    def answered(self, status: int) -> None:
        if status == Status.ACKNOWLEDGE:
            with suppress(OSError):
                self.channel.vq_inject_irq(0)


class Counting(ModelBlk):
    """Knows how many chains it has completed."""

    done = 0

    def complete(self, queue: DeviceQueue, chain: Chain) -> None:
        self.done += 1
        super().complete(queue, chain)


class LosesOne(Counting):
    def put(self, queue: DeviceQueue, chain: Chain, written: int) -> None:
        if self.done != 10:
            super().put(queue, chain, written)


class UsesTwice(Counting):
    def put(self, queue: DeviceQueue, chain: Chain, written: int) -> None:
        if self.done == 5:
            super().put(queue, chain, written)
        super().put(queue, chain, written)


class UsesUnknown(Counting):
    def put(self, queue: DeviceQueue, chain: Chain, written: int) -> None:
        if self.done == 5:
            super().put(queue, replace(chain, id=0x1000), 1)
        super().put(queue, chain, written)


class LengthZero(ModelBlk):
    def reply(self, chain: Chain, status: int, data: bytes) -> int:
        super().reply(chain, status, data)
        return 0


class NeverInterrupts(ModelBlk):
    def irq(self, queue: DeviceQueue) -> None:
        pass


class AlwaysInterrupts(ModelBlk):
    def put(self, queue: DeviceQueue, chain: Chain, written: int) -> None:
        queue.put(chain, written)
        self.irq(queue)


class WantsNoKick(ModelBlk):
    """Sleeps where it has told the driver not to wake it."""

    def enable(self, index: int) -> None:
        super().enable(index)
        if index in self.queues:
            queue = self.queues[index]
            at = queue.info.device_addr + 4 + 8 * queue.info.num
            if queue.event_idx and not queue.packed:
                queue.want_kick = lambda: self.memory.write(  # type: ignore[method-assign]
                    at, ((queue.avail - 1000) & 0xFFFF).to_bytes(2, "little")
                )


class WantsWholeHeader(ModelBlk):
    def execute(self, chain: Chain) -> tuple[int, bytes]:
        if chain.readable[0][1] < 16:
            return S_IOERR, b""
        return super().execute(chain)


class _NoTables(DeviceQueue):
    def _check_table(self, table: int, length: int, flags: int) -> None:
        raise BadChain("an indirect table")


class OffersTablesOnly(ModelBlk):
    def enable(self, index: int) -> None:
        super().enable(index)
        if index in self.queues:
            info = self.channel.vq_get_info(index)
            self.queues[index] = _NoTables(self.memory, info, self.channel.dev_get_features())


class DiesOfBadChains(ModelBlk):
    def serve(self, queue: DeviceQueue) -> None:
        try:
            super().serve(queue)
        except BadChain:
            raise SystemExit from None


class ServesTheFirst(ModelBlk):
    def kick(self, index: int) -> None:
        if index == 0:
            super().kick(index)


class NeverLate(ModelBlk):
    def late(self, index: int) -> None:
        pass


class StartsAtZero(ModelBlk):
    def enable(self, index: int) -> None:
        super().enable(index)
        if index in self.queues and not self.queues[index].packed:
            self.queues[index].avail = self.queues[index].used = 0


class Slow(ModelBlk):
    """Leaves several requests at a time where they are until it is to hurry."""

    FEATURES = ModelBlk.FEATURES & ~int(Feature.RING_PACKED)
    hurrying = False

    def serve(self, queue: DeviceQueue) -> None:
        if self.hurrying or queue.waiting <= 1:
            super().serve(queue)

    def hurry(self, queue: DeviceQueue) -> None:
        """All of them."""
        self.hurrying = True
        self.serve(queue)
        self.hurrying = False

    def recover(self) -> None:
        self.hurrying = True
        super().recover()
        self.hurrying = False


class AnswersBeforeItDrains(Slow):
    def get_vq_state(self, request: DevRequest, index: int) -> None:
        queue = self.queues[index]
        ahead = (queue.avail + queue.waiting,)
        self.respond(DevResponse(request.request_id, 0, index, encode_vq_state(ahead)))
        self.hurry(queue)
        self.queues.pop(index)


class AnswersAnotherPosition(ModelBlk):
    def position(self, queue: DeviceQueue) -> tuple[int, ...]:
        first, *others = queue.position
        return first ^ 1, *others


class KnowsEveryQueue(ModelBlk):
    def get_vq_state(self, request: DevRequest, index: int) -> None:
        self.respond(self.answer(request, True))


class WritesBehindTheStatus(ModelBlk):
    def reply(self, chain: Chain, status: int, data: bytes) -> int:
        addr, size = chain.writable[-1]
        self.memory.write(addr + size, b"\xee\xee\xee")
        return super().reply(chain, status, data)


class WritesTheHeader(ModelBlk):
    def reply(self, chain: Chain, status: int, data: bytes) -> int:
        self.memory.write(chain.readable[0][0] + 4, b"\xee")
        return super().reply(chain, status, data)


class IgnoresUpdates(ModelBlk):
    def update_iotlb(self) -> None:
        pass


class FailsAtUpdates(Slow):
    def update_iotlb(self) -> None:
        super().update_iotlb()
        for queue in self.queues.values():
            self.hurry(queue)

    def request(self, kind: int, sector: int, data: bytes, room: int) -> tuple[int, bytes]:
        return (S_IOERR, b"") if self.hurrying else super().request(kind, sector, data, room)


class _Writable(Mapped):
    def write(self, iova: int, data: bytes) -> None:
        entry, region = self.region(iova, len(data))
        region[iova - entry.start : iova - entry.start + len(data)] = data


class IgnoresPermission(ModelBlk):
    def start(self) -> bool:
        self.memory = _Writable(self.channel)
        return super().start()


class StatusNine(ModelBlk):
    def reply(self, chain: Chain, status: int, data: bytes) -> int:
        return super().reply(chain, 9 if status == S_OK else status, data)


class NeverFlushes(ModelBlk):
    def request(self, kind: int, sector: int, data: bytes, room: int) -> tuple[int, bytes]:
        return (S_IOERR, b"") if kind == T_FLUSH else super().request(kind, sector, data, room)


class ForgetsWrites(ModelBlk):
    def store(self, start: int, data: bytes) -> None:
        pass


class FailsStrangeRequests(ModelBlk):
    def strange(self) -> tuple[int, bytes]:
        return S_IOERR, b""


class ReadsBeyondItsEnd(ModelBlk):
    def request(self, kind: int, sector: int, data: bytes, room: int) -> tuple[int, bytes]:
        if kind == T_IN and sector >= self.SECTORS:
            return S_OK, bytes(room)
        return super().request(kind, sector, data, room)


class ReadOnly(ModelBlk):
    """It keeps the rules."""

    FEATURES = ModelBlk.FEATURES | int(BlkFeature.RO)

    def request(self, kind: int, sector: int, data: bytes, room: int) -> tuple[int, bytes]:
        return self.refuse() if kind == T_OUT else super().request(kind, sector, data, room)

    def refuse(self) -> tuple[int, bytes]:
        return S_IOERR, b""


class WritableReadOnly(ReadOnly):
    def refuse(self) -> tuple[int, bytes]:
        return S_OK, b""


class WritesNoZeroes(ModelBlk):
    def request(self, kind: int, sector: int, data: bytes, room: int) -> tuple[int, bytes]:
        if kind == T_WRITE_ZEROES:
            return S_OK, b""
        return super().request(kind, sector, data, room)


class InterruptsAfterReset(ModelBlk):
    was_live = False

    def reset(self) -> None:
        self.was_live = self.live
        super().reset()

    def answered(self, status: int) -> None:
        if status == 0 and self.was_live:
            with suppress(OSError):
                self.channel.vq_inject_irq(0)


class WritesAfterReset(ModelBlk):
    was_live = False

    def reset(self) -> None:
        self.was_live, self.live = self.live, False
        self.queues.clear()

    def answered(self, status: int) -> None:
        if status or not self.was_live:
            return
        self.was_live = False
        _, region = self.memory.regions[0]
        for count in range(20):  # whenever the check looks, some are still to come
            region[0x9000] = count
            time.sleep(0.01)


class StartsOnce(ModelBlk):
    was_live = False

    def reset(self) -> None:
        self.was_live |= self.live
        super().reset()

    def kick(self, index: int) -> None:
        if not self.was_live:
            super().kick(index)


class ForgetsWhatWasInFlight(Slow):
    def enable(self, index: int) -> None:
        super().enable(index)
        if index in self.queues and self.hurrying:
            queue = self.queues[index]
            queue.avail = queue.used = (queue.avail + queue.waiting) & 0xFFFF

    def resume(self, queue: DeviceQueue, position: tuple[int, ...]) -> None:
        pass


class DoesTheLastAgain(Slow):
    def resume(self, queue: DeviceQueue, position: tuple[int, ...]) -> None:
        super().resume(queue, position)
        queue.avail = (queue.avail - 1) & 0xFFFF


class LosesWhatWasInFlight(Slow):
    def store(self, start: int, data: bytes) -> None:
        if not self.hurrying:
            super().store(start, data)
