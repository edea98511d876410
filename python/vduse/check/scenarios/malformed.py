"""Chains that no driver may make: the request or the device ends, the program lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vduse.check import rules
from vduse.check.errors import Broken, Died, Stalled
from vduse.check.request import Request
from vduse.check.scenario import Scenario
from vduse.check.scenarios.disk import Blocks, expect_ok
from vduse.check.session import Session, live
from vduse.check.stage import Stage
from vduse.check.verdict import MOST_EVIDENCE
from vduse.control.features import Feature
from vduse.testing.rawdriver import T_IN, header
from vduse.testing.rings import (
    AVAIL,
    DESCRIPTOR_SIZE,
    INDIRECT,
    NEXT,
    WRITE,
    PackedRing,
    SplitRing,
)

_U64 = 1 << 64


class _Case(NamedTuple):
    what: str
    offer: Callable[[Session], None]
    #: Feature bits without which it says nothing.
    needs: int = 0


def _chain(*parts: tuple[int, int]) -> Callable[[Session], None]:
    """A header of a read, then descriptors of these lengths and flags in room of their own."""

    def offer(session: Session) -> None:
        iova = session.buffers.iova
        chain = [(iova(_header(session)), 16, 0)]
        for length, flags in parts:
            at = session.allocate(length)
            if flags & WRITE and length:
                session.canvas.grant(at, length)  # whatever the chain, that is the device's
            chain.append((iova(at), length, flags))
        session.queue.offer(Request(T_IN, 0, 0, 0), chain)

    return offer


def _single(addr: int, length: int, flags: int = 0) -> Callable[[Session], None]:
    """One descriptor wherever it may be."""

    def offer(session: Session) -> None:
        session.queue.offer(Request(T_IN, 0, 0, 0), [(addr, length, flags)])

    return offer


def _short_header(session: Session) -> None:
    queue = session.queue
    at = session.buffers.readable(header(T_IN)[:8], "a header of 8 bytes")
    status = session.buffers.status(Request(T_IN, 0, 0, 0))
    queue.offer(Request(T_IN, 0, 0, 0), [(session.buffers.iova(at), 8, 0), status])


def _loop(session: Session) -> None:
    ring, at = _split(session), session.buffers.iova(_header(session))
    ring.descriptor(0, at, 16, NEXT, 1)
    ring.descriptor(1, at, 16, NEXT, 0)
    ring.offer(0)


def _next_outside(session: Session) -> None:
    ring = _split(session)
    ring.descriptor(0, session.buffers.iova(_header(session)), 16, NEXT, 0xFFF0)
    ring.offer(0)


def _head_outside(session: Session) -> None:
    _split(session).offer(0xFFF0)


def _index_jumps(session: Session) -> None:
    _split(session).set_avail_index(session.size + 1)


def _endless(session: Session) -> None:
    """Packed: every descriptor says that another one follows."""
    ring, at = session.queue.ring, session.buffers.iova(_header(session))
    assert isinstance(ring, PackedRing)
    for index in reversed(range(session.size)):
        ring.descriptor(index, at, 16, 0, NEXT | AVAIL)


def _table(length: int, flags: int, inner: int = 0) -> Callable[[Session], None]:
    """An indirect table of so many bytes."""

    def offer(session: Session) -> None:
        queue, at = session.queue, session.allocate(4 * DESCRIPTOR_SIZE)
        session.canvas.write(at, bytes(4 * DESCRIPTOR_SIZE))
        buffer = session.buffers.iova(_header(session))
        if isinstance(queue.ring, SplitRing):
            queue.ring.indirect(at, 0, buffer, 16, inner, 0xFFF0 if inner & NEXT else 0)
        else:
            queue.ring.indirect(at, 0, buffer, 16, inner)
        queue.offer(Request(T_IN, 0, 0, 0), [(session.buffers.iova(at), length, INDIRECT | flags)])

    return offer


_EITHER = (
    _Case("no room for a status", _chain()),
    _Case("a header of 8 bytes", _short_header),
    _Case("device-readable behind device-writable", _chain((512, WRITE), (512, 0), (1, WRITE))),
    _Case("a descriptor of no bytes", _chain((0, WRITE), (1, WRITE))),
    _Case("a descriptor past the end of 64 bits", _single(_U64 - 16, 4096)),
    _Case("a descriptor of 4 GiB", _single(1 << 32, 0xFFFF_FFFF, WRITE)),
    _Case("an unmapped header", _single(1 << 40, 16)),
    _Case("an indirect table of 17 bytes", _table(17, 0), Feature.INDIRECT_DESC),
    _Case("an indirect table of no bytes", _table(0, 0), Feature.INDIRECT_DESC),
    _Case("a table in a table", _table(16, 0, INDIRECT), Feature.INDIRECT_DESC),
)
_SPLIT = (
    _Case("descriptors in a loop", _loop),
    _Case("next outside the table", _next_outside),
    _Case("a head outside the table", _head_outside),
    _Case("an available index that jumps past the ring", _index_jumps),
    _Case("next outside the indirect table", _table(16, 0, NEXT), Feature.INDIRECT_DESC),
)
_PACKED = (_Case("a chain without an end", _endless),)


def _run(stage: Stage) -> None:
    blocks = Blocks(stage)
    deaths = 0
    for packed in stage.formats:
        for case in _EITHER + (_PACKED if packed else _SPLIT):
            # Who starts it again loses patience at last.
            if stage.offers(case.needs) and deaths < MOST_EVIDENCE:
                deaths += not _lives(stage, packed, case, blocks)


def _lives(stage: Stage, packed: bool, case: _Case, blocks: Blocks) -> bool:
    """False: it died, and is there again. Died: for good."""
    shown = f"{'packed' if packed else 'split'}: {case.what}"
    stage.ledger.reach(rules.CHAIN_MALFORMED)
    try:
        _offer(stage, packed, case)
        _works(stage, packed, blocks)
    except Died as error:
        stage.ledger.fail(rules.CHAIN_MALFORMED, f"{shown}: {error}\n{stage.watch.tail(4)}")
        stage.restart()
        return False
    except (Broken, Stalled) as error:
        stage.ledger.fail(rules.CHAIN_MALFORMED, f"{shown}: {error}")
        stage.check_alive()
    return True


def _offer(stage: Stage, packed: bool, case: _Case) -> None:
    with live(stage, packed=packed) as session:
        case.offer(session)
        session.kick(session.queue)
        # Whatever comes back is fine.
        session.queue.rest(stage.timing.quiet)
        session.look()


def _works(stage: Stage, packed: bool, blocks: Blocks) -> None:
    """After the reset."""
    with live(stage, packed=packed) as session:
        session.queue.returned = rules.CHAIN_MALFORMED
        expect_ok(stage, session.do(T_IN, 0, room=blocks.size), rules.CHAIN_MALFORMED)


def _header(session: Session) -> int:
    return session.buffers.readable(header(T_IN), "a request's header")


def _split(session: Session) -> SplitRing:
    ring = session.queue.ring
    assert isinstance(ring, SplitRing)
    return ring


SCENARIO = Scenario(
    name="malformed",
    title="offers chains that no driver may make",
    rules=(rules.CHAIN_MALFORMED,),
    blame=rules.CHAIN_MALFORMED,
    run=_run,
)
