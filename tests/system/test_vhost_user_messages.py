"""vhost-user messages that cannot be: a front end that waits for an acknowledgement is refused
and goes on, another one's connection is closed; either way there is one line in the log, and
neither the device nor its neighbour is any the worse."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.system.vhost_user_cases import CASES, Case, State
from tests.system.vhost_user_stage import (
    CLOSED,
    VhostUserStage,
    check_answers,
    check_served,
    closing,
)
from tests.unit.vhost_user_front_end import FrontEnd
from vduse.control.abi import ACCESS_RW
from vduse.control.vhost_user import Request
from vduse.testing.rawdriver import RawDriver

#: Their reply is more than an acknowledgement and cannot say no: the connection is closed.
WITH_REPLY = {
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.GET_VRING_BASE,
    Request.GET_CONFIG,
    Request.GET_INFLIGHT_FD,
    Request.GET_MAX_MEM_SLOTS,
    Request.GET_STATUS,
}
_HEADER = struct.Struct("=III")


@pytest.fixture(scope="module")
def stage() -> Iterator[VhostUserStage]:
    """One for all cases: what one of them leaves behind is found by the next."""
    with VhostUserStage() as stage:
        yield stage


@contextmanager
def _at(stage: VhostUserStage, state: State) -> Iterator[tuple[FrontEnd, RawDriver | None]]:
    if state == "fresh":
        with stage.front_end() as front:
            yield front, None
        return
    with stage.guest() as raw:
        if state == "live":
            assert raw.start()
        else:
            memory = raw.memory
            raw.driver.iotlb_update(memory.iova, memory.size, memory.fd, 0, ACCESS_RW)
        yield raw.driver.front, raw  # type: ignore[attr-defined]


def _name(case: Case) -> str:
    known = case.message in set(Request)
    return f"{Request(case.message).name if known else case.message}: {case.wrong}"


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_nobody_waits_for_the_answer(stage: VhostUserStage, case: Case) -> None:
    with stage.nobody_hurt(), _at(stage, case.when) as (front, _), closing(*case.fds()) as fds:
        front.send(case.message, case.payload, *fds)
        assert front.gone()
        line = stage.log.wait_for(CLOSED)
    assert case.says in line
    assert stage.lines == [line]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.message not in WITH_REPLY], ids=_name
)
def test_the_front_end_waits_for_the_answer(stage: VhostUserStage, case: Case) -> None:
    with stage.nobody_hurt(), _at(stage, case.when) as (front, raw), closing(*case.fds()) as fds:
        front.send(case.message, case.payload, *fds, flags=9)
        assert front.reply(case.message) == struct.pack("=Q", 1)
        check_answers(front)
        if raw is not None and case.when == "live":
            check_served(raw)
    (line,) = stage.lines
    assert " refused: " in line
    assert case.says in line


HEADERS = {
    "version 0": (_HEADER.pack(Request.SET_OWNER, 0, 0), "version 0"),
    "version 2": (_HEADER.pack(Request.SET_OWNER, 2, 0), "version 2"),
    "version 3": (_HEADER.pack(Request.SET_OWNER, 3, 0), "version 3"),
    "a reply": (_HEADER.pack(Request.GET_QUEUE_NUM, 5, 0), "is a reply"),
    "a reply that is wanted": (_HEADER.pack(Request.SET_OWNER, 13, 0), "is a reply"),
    "huge": (_HEADER.pack(Request.SET_MEM_TABLE, 9, 0xFFFFFFFF), "4294967295 bytes"),
    "longer than any": (_HEADER.pack(Request.SET_MEM_TABLE, 1, 273), "273 bytes, at most 272"),
    "huge and unknown": (_HEADER.pack(99, 1, 1 << 31), "2147483648 bytes"),
}


@pytest.mark.parametrize(("header", "says"), HEADERS.values(), ids=HEADERS.keys())
def test_a_header_that_cannot_be(stage: VhostUserStage, header: bytes, says: str) -> None:
    """The stream is of no more use, whoever waits for an answer."""
    with stage.nobody_hurt(), stage.front_end() as front:
        front.socket.sendall(header)
        assert front.gone()
        line = stage.log.wait_for(CLOSED)
    assert says in line
    assert stage.lines == [line]


@pytest.mark.parametrize("request_", sorted(WITH_REPLY - {Request.GET_VRING_BASE}))
def test_need_reply_adds_nothing_to_a_reply(stage: VhostUserStage, request_: int) -> None:
    """Where there is a reply it is the acknowledgement (REPLY_ACK)."""
    payload = {
        Request.GET_CONFIG: struct.pack("=III", 0, 8, 0) + bytes(8),
        Request.GET_INFLIGHT_FD: struct.pack("=QQHH4x", 0, 0, 1, 16),
    }
    with stage.nobody_hurt(), stage.front_end() as front:
        front.send(request_, payload.get(Request(request_), b""), flags=9)
        front.reply(request_)
        check_answers(front)
    assert stage.lines == []
