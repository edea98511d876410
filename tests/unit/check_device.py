"""A virtio-blk daemon on `Channel` alone that keeps every rule, and what starts it under a check.
Tests override one method, and break one rule."""

from __future__ import annotations

import mmap
import os
import select
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from tests.unit.check_ring import BadChain, Chain, DeviceQueue
from vduse.channel.base import Channel
from vduse.channel.embedded import inherited
from vduse.check.checker import check
from vduse.check.report import Report
from vduse.check.scenario import Scenario
from vduse.check.stage import Timing
from vduse.check.watch import Watch
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    GetVqState,
    IotlbEntry,
    RequestResult,
    SetStatus,
    UpdateIotlb,
    encode_vq_state,
)
from vduse.control.features import BlkFeature, DeviceId, Feature, Status
from vduse.framework import Framework
from vduse.testing.rawdriver import (
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)

SECTOR = 512
_CONFIG = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")


class Mapped:
    """The driver's memory through GET_FD; what was mapped stays until UPDATE_IOTLB."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.regions: list[tuple[IotlbEntry, mmap.mmap]] = []

    def forget(self) -> None:
        """UPDATE_IOTLB, reset."""
        for _, region in self.regions:
            region.close()
        self.regions.clear()

    def read(self, iova: int, length: int) -> bytes:
        entry, region = self.region(iova, length)
        at = iova - entry.start
        return region[at : at + length]

    def write(self, iova: int, data: bytes) -> None:
        entry, region = self.region(iova, len(data))
        if not entry.perm & 2:
            raise BadChain(f"{iova:#x} is read-only")
        at = iova - entry.start
        region[at : at + len(data)] = data

    def region(self, iova: int, length: int) -> tuple[IotlbEntry, mmap.mmap]:
        last = iova + length - 1
        for entry, region in self.regions:
            if entry.start <= iova and last <= entry.last:
                return entry, region
        if iova >> 64 or last >> 64:
            raise BadChain(f"{length} bytes at {iova:#x}")
        try:
            entry, fd = self._channel.iotlb_get_fd(iova, iova)
        except OSError as error:
            raise BadChain(f"{iova:#x} is not mapped") from error
        try:
            if last > entry.last:
                raise BadChain(f"{length} bytes at {iova:#x} are not mapped")
            size = entry.last - entry.start + 1
            region = mmap.mmap(fd, size, offset=entry.offset)
        finally:
            os.close(fd)
        self.regions.append((entry, region))
        return entry, region


@dataclass
class Kept:
    """What outlives a daemon: its disk, and where its virtqueues stood."""

    disk: bytearray
    positions: dict[int, tuple[int, ...]] = field(default_factory=dict)


class ModelBlk:
    """A daemon on a thread of its own. It serves requests in their order, and takes the next one
    when the last one is used, so that nothing is in flight between two messages."""

    SECTORS: ClassVar[int] = 4096
    QUEUES: ClassVar[int] = 2
    SIZE: ClassVar[int] = 64
    FEATURES: ClassVar[int] = int(
        Feature.VERSION_1
        | Feature.ACCESS_PLATFORM
        | Feature.RING_PACKED
        | Feature.INDIRECT_DESC
        | Feature.EVENT_IDX
        | BlkFeature.SIZE_MAX
        | BlkFeature.SEG_MAX
        | BlkFeature.BLK_SIZE
        | BlkFeature.FLUSH
        | BlkFeature.MQ
        | BlkFeature.WRITE_ZEROES
    )

    def __init__(self, framework: Framework, kept: Kept, *, successor: bool = False) -> None:
        self.kept = kept
        self.control = inherited(framework.control())
        if not successor:
            self.create()
        self.channel = self.control.open("vd0")
        self.memory = Mapped(self.channel)
        self.queues: dict[int, DeviceQueue] = {}
        self.live = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self.kicks = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(self.QUEUES)]
        self.stopping = False
        if successor:
            self.recover()
        else:
            self.set_up()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    # --- its life ---------------------------------------------------------------------------

    def create(self) -> None:
        self.control.create_dev(
            DevConfig("vd0", 0, DeviceId.BLOCK, self.FEATURES, self.QUEUES, 4096, self.config())
        )

    def config(self, **changes: int) -> bytes:
        fields = {"capacity": self.SECTORS, "size_max": 1 << 20, "seg_max": 62, "blk_size": 512}
        fields |= {"num_queues": self.QUEUES} | changes
        return _CONFIG.pack(
            *(fields["capacity"], fields["size_max"], fields["seg_max"], 0, 0, 0),
            *(fields["blk_size"], 0, 0, 0, 0, 0, fields["num_queues"]),
            *(0, 0, 0, 1024, 1, 0),
        )

    def set_up(self) -> None:
        for index in range(self.QUEUES):
            self.channel.vq_setup(index, self.SIZE)

    def recover(self) -> None:
        """Goes on where the last one stood."""
        if not any(self.channel.vq_get_info(index).ready for index in range(self.QUEUES)):
            return
        self.live = True
        for index in range(self.QUEUES):
            self.channel.vq_setup_kickfd(index, self.kicks[index])
            self.enable(index)
            if index in self.queues and index in self.kept.positions:
                self.resume(self.queues[index], self.kept.positions[index])
        for index in list(self.queues):
            self.kick(index)

    def resume(self, queue: DeviceQueue, position: tuple[int, ...]) -> None:
        """Where the last one stood: what was taken was used."""
        if queue.packed:
            queue.avail, queue.avail_wrap, queue.used, queue.used_wrap = position
        else:
            queue.avail = queue.used = position[0]

    def kill(self) -> None:
        """As SIGKILL: between two steps."""
        self.stopping = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)
            self._wake = -1

    def _serve(self) -> None:
        poll = select.poll()
        for fd in (self._wake, self.channel.fileno(), *self.kicks):
            poll.register(fd, select.POLLIN)
        try:
            while not self.stopping:
                for fd, _ in poll.poll():
                    if fd == self.channel.fileno():
                        request = self.channel.receive()
                        if request is not None:
                            self.handle(request)
                    elif fd in self.kicks and self.kicked(fd):
                        self.kick(self.kicks.index(fd))
        except (OSError, SystemExit):
            pass  # the framework has gone, or the daemon "died"
        finally:
            self.channel.close()
            self.control.close()
            self.memory.forget()
            for fd in self.kicks:
                os.close(fd)

    def kicked(self, fd: int) -> bool:
        """Takes what was signalled; false: nothing, any more."""
        try:
            return os.eventfd_read(fd) > 0
        except BlockingIOError:
            return False

    # --- messages ---------------------------------------------------------------------------

    def respond(self, response: DevResponse) -> None:
        self.channel.respond(response)

    def handle(self, request: DevRequest) -> None:
        match request.message:
            case SetStatus(status=status):
                ok = self.set_status(status)
                self.respond(self.answer(request, ok))
                self.answered(status)
            case GetVqState(index=index):
                self.get_vq_state(request, index)
            case UpdateIotlb():
                self.update_iotlb()
                self.respond(self.answer(request, True))
            case _:
                self.unknown(request)

    def answer(self, request: DevRequest, ok: bool) -> DevResponse:
        result = RequestResult.OK if ok else RequestResult.FAILED
        return DevResponse(request.request_id, result)

    def set_status(self, status: int) -> bool:
        if status == 0:
            self.reset()
            return True
        if status & Status.DRIVER_OK:
            return self.live or self.start()
        if status & Status.FEATURES_OK:
            return self.takes(self.channel.dev_get_features())
        return True

    def answered(self, status: int) -> None:
        """After the answer to SET_STATUS."""

    def takes(self, features: int) -> bool:
        return not features & ~self.FEATURES and bool(features & Feature.VERSION_1)

    def start(self) -> bool:
        self.live = True
        try:
            for index in range(self.QUEUES):
                self.channel.vq_setup_kickfd(index, self.kicks[index])
                self.enable(index)
        except BadChain:
            self.reset()
            return False
        return True

    def enable(self, index: int) -> None:
        """Starts a virtqueue that is ready. BadChain."""
        info = self.channel.vq_get_info(index)
        if not info.ready or index in self.queues:
            return
        if info.num > self.SIZE:
            raise BadChain("too long")
        self.queues[index] = DeviceQueue(self.memory, info, self.channel.dev_get_features())

    def reset(self) -> None:
        self.live = False
        self.queues.clear()
        self.kept.positions.clear()
        self.memory.forget()

    def get_vq_state(self, request: DevRequest, index: int) -> None:
        queue = self.queues.get(index)
        if index >= self.QUEUES or (queue is not None and queue.broken):
            self.respond(self.answer(request, False))
            return
        state = self.channel.vq_get_info(index).state
        if queue is not None:
            self.queues.pop(index)
            self.kicked(self.kicks[index])  # from before: it starts nothing
            state = encode_vq_state(self.position(queue))
        self.respond(DevResponse(request.request_id, RequestResult.OK, index, state))

    def position(self, queue: DeviceQueue) -> tuple[int, ...]:
        """Where a drained virtqueue stands."""
        return queue.position

    def update_iotlb(self) -> None:
        self.memory.forget()

    def unknown(self, request: DevRequest) -> None:
        self.respond(self.answer(request, False))

    # --- requests ---------------------------------------------------------------------------

    def kick(self, index: int) -> None:
        if not self.live:
            return
        if index not in self.queues:
            self.late(index)
        queue = self.queues.get(index)
        if queue is not None and not queue.broken:
            try:
                self.serve(queue)
            except BadChain:
                queue.broken = True

    def late(self, index: int) -> None:
        """A kick of a virtqueue that was not ready before."""
        self.enable(index)

    def serve(self, queue: DeviceQueue) -> None:
        while not self.stopping:
            chain = queue.take()
            if chain is None:
                queue.want_kick()
                chain = queue.take()
            if chain is None:
                return
            self.complete(queue, chain)

    def complete(self, queue: DeviceQueue, chain: Chain) -> None:
        status, data = self.execute(chain)
        self.put(queue, chain, self.reply(chain, status, data))

    def put(self, queue: DeviceQueue, chain: Chain, written: int) -> None:
        wanted = queue.put(chain, written)
        self.kept.positions[queue.index] = queue.position
        if wanted:
            self.irq(queue)

    def irq(self, queue: DeviceQueue) -> None:
        self.channel.vq_inject_irq(queue.index)

    def reply(self, chain: Chain, status: int, data: bytes) -> int:
        """Writes data and status; the used length."""
        room = sum(size for _, size in chain.writable)
        content = data[: room - 1].ljust(room - 1, b"\0") + bytes([status])
        if status != S_OK:
            # Only the status: what comes before is not touched, and so not counted.
            addr, size = chain.writable[-1]
            self.memory.write(addr + size - 1, content[-1:])
            return 0 if room > 1 else 1
        at = 0
        for addr, size in chain.writable:
            self.memory.write(addr, content[at : at + size])
            at += size
        return room

    def execute(self, chain: Chain) -> tuple[int, bytes]:
        """Status and what is read. BadChain."""
        raw = b"".join(self.memory.read(addr, size) for addr, size in chain.readable)
        if len(raw) < 16 or not chain.writable:
            raise BadChain("no request")
        for addr, size in chain.writable:
            self.memory.region(addr, size)
        kind, _, sector = struct.unpack_from("<IIQ", raw)
        return self.request(kind, sector, raw[16:], sum(s for _, s in chain.writable) - 1)

    def request(self, kind: int, sector: int, data: bytes, room: int) -> tuple[int, bytes]:
        start, disk = sector * SECTOR, self.kept.disk
        if kind == T_IN:
            if start + room > len(disk):
                return S_IOERR, b""
            return S_OK, bytes(disk[start : start + room])
        if kind == T_OUT:
            if start + len(data) > len(disk):
                return S_IOERR, b""
            self.store(start, data)
            return S_OK, b""
        if kind == T_WRITE_ZEROES:
            sector, sectors, _ = struct.unpack_from("<QII", data)
            self.store(sector * SECTOR, bytes(sectors * SECTOR))
            return S_OK, b""
        if kind in (T_FLUSH, T_GET_ID):
            return S_OK, b"model"
        return self.strange()

    def strange(self) -> tuple[int, bytes]:
        """An unknown type."""
        return S_UNSUPP, b""

    def store(self, start: int, data: bytes) -> None:
        self.kept.disk[start : start + len(data)] = data


#: Short for what must not happen, long for what must: a good device does that at once.
TIMING = Timing(patience=20.0, quiet=0.05)


@contextmanager
def checking(
    kind: type[ModelBlk],
    *,
    msg_timeout: float = 30.0,
    watch: Watch | None = None,
) -> Iterator[Running]:
    """A daemon of this kind, not attached."""
    watch = watch or Watch()
    with Framework(tap=watch, msg_timeout=msg_timeout) as framework:
        running = Running(framework, watch, kind)
        try:
            yield running
        finally:
            running.device.kill()


class Running:
    """A framework, a daemon, and its successors."""

    def __init__(self, framework: Framework, watch: Watch, kind: type[ModelBlk]) -> None:
        self.framework = framework
        self.watch = watch
        self.kind = kind
        self.kept = Kept(bytearray(kind.SECTORS * SECTOR))
        self.device = kind(framework, self.kept)

    def kill(self) -> None:
        """And its successor is there."""
        self.device.kill()
        assert self.watch.device("vd0").wait_closed(20)
        self.device = self.kind(self.framework, self.kept, successor=True)

    def check(
        self, scenarios: Sequence[Scenario], *, timing: Timing = TIMING, kill: bool = True
    ) -> Report:
        """Attaches the device and checks it."""
        self.framework.dev_add("vd0", driver="vhost_vdpa")
        return check(
            self.framework,
            "vd0",
            self.watch,
            kill=self.kill if kill else None,
            timing=timing,
            scenarios=scenarios,
        )
