"""Mappings that change, that are not there, and that may not be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vduse.check import rules
from vduse.check.request import Request
from vduse.check.scenario import Scenario
from vduse.check.scenarios.disk import Blocks, expect_ok, flood
from vduse.check.session import Session, live
from vduse.check.stage import Stage
from vduse.control.abi import ACCESS_RO, ACCESS_RW
from vduse.testing.rawdriver import S_OK, T_IN, header
from vduse.testing.rings import WRITE, Memory

#: IOVA of memory that comes and goes beside the session's own.
_WINDOW = 1 << 33
_CANARY = b"\xc5"
_UPDATES = 20


class _Page(Memory):
    """One request's data, full of canaries, to be mapped at the window."""

    def __init__(self, size: int) -> None:
        super().__init__(size, _WINDOW)
        self.fill()

    def fill(self) -> None:
        """Canaries everywhere."""
        self.write(0, _CANARY * self.size)

    @property
    def touched(self) -> bool:
        """A canary is gone."""
        return self.read(0, self.size) != _CANARY * self.size


class _Window(NamedTuple):
    """The window, seen from a session."""

    session: Session
    size: int

    def map(self, page: _Page, perm: int = ACCESS_RW) -> None:
        """``page`` in place of what is mapped there: one UPDATE_IOTLB."""
        driver = self.session.stage.driver
        with self.session.stage.messages():
            driver.iotlb_batch_begin()
            driver.iotlb_invalidate(_WINDOW, self.size)
            driver.iotlb_update(_WINDOW, self.size, page.fd, 0, perm)
            driver.iotlb_batch_end()

    def unmap(self) -> None:
        """Nothing is mapped there."""
        with self.session.stage.messages():
            self.session.stage.driver.iotlb_invalidate(_WINDOW, self.size)

    def read_into(self) -> Request:
        """Offers a read whose data goes to the window, and kicks."""
        queue, buffers = self.session.queue, self.session.buffers
        request = Request(T_IN, 0, 0, self.size)
        first = buffers.iova(buffers.readable(header(T_IN), "a request's header"))
        data = (_WINDOW, self.size, WRITE)
        queue.offer(request, [(first, 16, 0), data, buffers.status(request)])
        self.session.kick(queue)
        return request


def _with_window(scene: Callable[[Stage, _Window, Blocks], None]) -> Callable[[Stage], None]:
    def run(stage: Stage) -> None:
        blocks = Blocks(stage)
        for packed in stage.formats:
            with live(stage, packed=packed) as session:
                scene(stage, _Window(session, blocks.size), blocks)

    return run


def _update(stage: Stage, window: _Window, blocks: Blocks) -> None:
    """A page takes another's place; the device has used the first one."""
    queue = window.session.queue
    with _Page(window.size) as old, _Page(window.size) as new:
        window.map(old)
        window.read_into()
        if not expect_ok(stage, queue.wait(1)[0]):
            return
        old.fill()
        window.map(new)
        stage.ledger.reach(rules.IOTLB_UPDATE)
        window.read_into()
        (request,) = queue.wait(1)
        if old.touched:
            stage.ledger.fail(
                rules.IOTLB_UPDATE,
                f"{queue.where}: {request} went to the memory that was mapped at IOVA "
                f"{_WINDOW:#x} before\n{stage.watch.tail(4)}",
            )
            return
        expect_ok(stage, request)
        _under_load(stage, window, blocks, new)


def _under_load(stage: Stage, window: _Window, blocks: Blocks, page: _Page) -> None:
    """Updates with requests in flight that they are not about."""
    queue = window.session.queue
    for variant in range(_UPDATES):
        count = flood(window.session, blocks, variant)
        window.map(page)
        for request in queue.wait(count):
            expect_ok(stage, request, rules.IOTLB_IN_FLIGHT)
    window.session.look()


def _unmapped(stage: Stage, window: _Window, blocks: Blocks) -> None:
    with _Page(window.size) as page:
        window.map(page)
        window.read_into()
        if not expect_ok(stage, window.session.queue.wait(1)[0]):
            return
        page.fill()
        window.unmap()
        stage.ledger.reach(rules.MEMORY_UNMAPPED)
        request = window.read_into()
        _judge(stage, window, request, page, rules.MEMORY_UNMAPPED)


def _permission(stage: Stage, window: _Window, blocks: Blocks) -> None:
    with _Page(window.size) as page:
        window.map(page, ACCESS_RO)
        stage.ledger.reach(rules.MEMORY_PERM)
        request = window.read_into()
        _judge(stage, window, request, page, rules.MEMORY_PERM)


def _judge(stage: Stage, window: _Window, request: Request, page: _Page, rule: rules.Rule) -> None:
    """The request fails, or the device stops."""
    queue = window.session.queue
    queue.watch_for(request, stage.timing.quiet)
    if page.touched:
        stage.ledger.fail(rule, f"{queue.where}: {request} was written to memory")
    elif request.status == S_OK:
        stage.ledger.fail(rule, f"{queue.where}: {request} has succeeded")
    window.session.look()


SCENARIO = Scenario(
    name="iotlb",
    title="changes mappings, also under load",
    rules=(rules.IOTLB_UPDATE, rules.IOTLB_IN_FLIGHT),
    blame=rules.IOTLB_UPDATE,
    run=_with_window(_update),
)
UNMAPPED = Scenario(
    name="unmapped",
    title="offers a buffer that is not mapped",
    rules=(rules.MEMORY_UNMAPPED,),
    blame=rules.MEMORY_UNMAPPED,
    run=_with_window(_unmapped),
)
PERMISSION = Scenario(
    name="permission",
    title="offers a buffer in memory that may only be read",
    rules=(rules.MEMORY_PERM,),
    blame=rules.MEMORY_PERM,
    run=_with_window(_permission),
)
