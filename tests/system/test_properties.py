"""Random programs of legal drivers, with everything that may happen to a device thrown in: what
is acknowledged is what is read, and every request completes once or is lost by a reset.

    make test ARGS="--hypothesis-profile=long -k acknowledged"
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from tests.system.disk_model import SECTOR, SERIAL, DiskModel, Placer, Request
from vduse.control.abi import ACCESS_RW
from vduse.control.features import Feature
from vduse.testing.harness import BlkStack, Where, blk_stack
from vduse.testing.rawdriver import (
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    RawDriver,
)
from vduse.testing.rings import Memory

SECTORS = 256
QUEUE_SIZE = 16
_WINDOWS = (0x4000_0000, 0x7FFF_FFFF_F000, 0x5000_0000)

#: Descriptors of the longest chain: a message and a reply cut at three places each.
MOST_PARTS = 8


@dataclass(frozen=True)
class Plan:
    """A request to make, and how to cut it into descriptors."""

    kind: int
    sector: int
    count: int
    cuts: list[int]
    reply_cuts: list[int]
    in_window: list[bool]
    indirect: bool


_cuts = st.lists(st.integers(0, 1 << 16), max_size=3)
plans = st.builds(
    Plan,
    kind=st.sampled_from([T_OUT, T_OUT, T_IN, T_IN, T_FLUSH, T_DISCARD, T_WRITE_ZEROES, T_GET_ID]),
    sector=st.integers(0, SECTORS - 1),
    count=st.integers(1, 24),
    cuts=_cuts,
    reply_cuts=_cuts,
    in_window=st.lists(st.booleans(), min_size=1, max_size=4),
    indirect=st.booleans(),
)
#: Requests made available at once, and whether a kick follows. What happens to a device happens
#: right behind one.
Burst = tuple[list[Plan], bool]
bursts = st.tuples(st.lists(plans, min_size=1, max_size=6), st.booleans())


class BlkMachine(RuleBasedStateMachine):
    """A driver on vhost_vdpa that is now and then somebody else's, and a device that is now and
    then another program."""

    where: Where = "process"

    def __init__(self) -> None:
        super().__init__()
        self._undo = ExitStack()
        image = Path(self._undo.enter_context(tempfile.TemporaryDirectory())) / "image"
        image.write_bytes(bytes(SECTORS * SECTOR))
        self.stack: BlkStack = self._undo.enter_context(
            blk_stack(
                backend=str(image),
                size=None,
                queue_size=QUEUE_SIZE,
                packed=True,
                serial=SERIAL.rstrip(b"\0").decode(),
                driver="vhost_vdpa",
                where=self.where,
                bounce_size=1 << 20,
            )
        )
        self.model = DiskModel(SECTORS)
        self.windows = 0
        self.flying: dict[int, Request] = {}

    @initialize(packed=st.booleans(), event_idx=st.booleans(), indirect=st.booleans())
    def start(self, packed: bool, event_idx: bool, indirect: bool) -> None:
        without = 0 if event_idx else Feature.EVENT_IDX
        without |= 0 if indirect else Feature.INDIRECT_DESC
        self.raw = RawDriver(self.stack.driver, size=QUEUE_SIZE, packed=packed, without=without)
        self.placer = Placer(_WINDOWS[0])
        self._map_window()
        assert self.raw.start()

    # --- requests ---------------------------------------------------------------------------

    @rule(burst=bursts)
    def submit(self, burst: Burst) -> None:
        plans, kick = burst
        for plan in plans:
            self._submit(plan)
        if kick:
            self.raw.kick()

    def _submit(self, plan: Plan) -> None:
        has_range = plan.kind not in (T_FLUSH, T_GET_ID)
        count = min(plan.count, SECTORS - plan.sector) if has_range else 0
        request = Request(plan.kind, plan.sector if has_range else 0, count)
        if plan.kind == T_OUT:
            request.stamp = self.model.stamp()
        if (
            any(request.touches(other) for other in self.flying.values())
            or self.raw.room < MOST_PARTS
            or not self.placer.has_room(self.raw, request)
        ):
            self.finish()
        chain = self.placer.place(self.raw, request, plan.cuts, plan.reply_cuts, plan.in_window)
        has_indirect = bool(self.raw.features & Feature.INDIRECT_DESC)
        id = self.raw.submit(chain, indirect=plan.indirect and has_indirect)
        assert id not in self.flying
        self.flying[id] = request

    @rule()
    def look(self) -> None:
        """Takes what has completed by now."""
        for used in self.raw.take_used():
            self.flying.pop(used.id).check(used, self.model)

    @rule()
    def finish(self) -> None:
        """Everything completes, once."""
        self.raw.kick()
        for used in self.raw.wait_used(len(self.flying)):
            self.flying.pop(used.id).check(used, self.model)
        assert not self.flying
        self.placer.clear()

    # --- what happens to a device -----------------------------------------------------------

    @rule(burst=bursts, packed=st.booleans(), event_idx=st.booleans(), indirect=st.booleans())
    def reset(self, burst: Burst, packed: bool, event_idx: bool, indirect: bool) -> None:
        self.submit(burst)
        self._end_driver()
        self.start(packed, event_idx, indirect)

    @rule(burst=bursts)
    def map_the_same_memory_anew(self, burst: Burst) -> None:
        self.submit(burst)
        self.raw.remap()

    @rule(burst=bursts)
    def migrate(self, burst: Burst) -> None:
        """The queue is stopped and started, its memory another file."""
        self.submit(burst)
        before = self.raw.memory
        self.raw.migrate()
        for request in self.flying.values():
            request.moved(before, self.raw.memory)

    @rule()
    def move_the_window(self) -> None:
        """Data lies at another IOVA, in another file; the rings stay."""
        self.finish()
        self.windows += 1
        driver, old = self.raw.driver, self.placer.window
        self.placer.window = Memory(old.size, _WINDOWS[self.windows % len(_WINDOWS)])
        driver.iotlb_batch_begin()
        driver.iotlb_invalidate(old.iova, old.size)
        self._map_window()
        driver.iotlb_batch_end()
        old.close()

    @rule(burst=bursts)
    def replace_the_device(self, burst: Burst) -> None:
        """Another instance takes over; what was not taken yet, it takes."""
        self.submit(burst)
        self.stack.device.close()
        self.stack.replace_device()

    @rule(
        burst=bursts,
        writes=st.lists(st.tuples(st.integers(0, SECTORS - 24), st.integers(1, 24)), max_size=4),
        shrink=st.booleans(),
        packed=st.booleans(),
    )
    def rebind(
        self, burst: Burst, writes: list[tuple[int, int]], shrink: bool, packed: bool
    ) -> None:
        """virtio_vdpa has the device for a while, through bounce pages that are reclaimed."""
        self.submit(burst)
        self._end_driver()
        self.stack.close_driver()
        name, framework = self.stack.spec.name, self.stack.framework
        framework.bus.bind(name, "virtio_vdpa")
        for sector, count in writes:
            request = Request(T_OUT, sector, count, self.model.stamp())
            self.stack.disk.pwrite(request.message[16:], sector * SECTOR)
            request.settle(self.model, surely=True)
            if shrink:
                framework.shrinker.reclaim()
            self.stack.vdpa.domain.reclaim()
            self.model.check_read(sector, self.stack.disk.pread(count * SECTOR, sector * SECTOR))
        framework.bus.bind(name, "vhost_vdpa")
        self.start(packed, True, True)

    # --- the end ----------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "raw"):
                self.finish()
                for sector in range(0, SECTORS, 32):
                    request = Request(T_IN, sector, 32)
                    chain = self.placer.place(self.raw, request, [], [], [False])
                    self.flying[self.raw.submit(chain)] = request
                    self.finish()
                self._end_driver()
        finally:
            self._undo.close()

    def _map_window(self) -> None:
        window = self.placer.window
        self.raw.driver.iotlb_update(window.iova, window.size, window.fd, 0, ACCESS_RW)

    def _end_driver(self) -> None:
        """Resets; what was in flight may have happened."""
        for used in self.raw.take_used():
            self.flying.pop(used.id).check(used, self.model)
        window = self.placer.window
        self.raw.reset()
        self.raw.driver.iotlb_invalidate(window.iova, window.size)
        for request in self.flying.values():
            request.settle(self.model, surely=False)
        self.flying.clear()
        self.raw.close()
        window.close()


class ChildMachine(BlkMachine):
    """The same with a device in a process of its own, which is killed now and then: what it had
    in flight its successor finds in the in-flight record."""

    where = "child"

    @rule(burst=bursts)
    def kill_the_device(self, burst: Burst) -> None:
        self.submit(burst)
        self.stack.kill_device()
        self.stack.replace_device()


def _settings(share: int, steps: int) -> settings:
    """A profile's examples, divided."""
    profile = settings.default
    assert profile is not None
    return settings(
        max_examples=max(2, profile.max_examples // share),
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_what_is_acknowledged_is_read() -> None:
    run_state_machine_as_test(BlkMachine, settings=_settings(2, 40))


@pytest.mark.timeout(600)
def test_what_is_acknowledged_is_read_whoever_is_killed() -> None:
    run_state_machine_as_test(ChildMachine, settings=_settings(20, 20))
