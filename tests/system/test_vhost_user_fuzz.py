"""Sequences of vhost-user messages, right ones and wrong ones, on a session with a real device
behind it: nothing but ProtocolError and OSError comes out, every fd is closed in the end, and the
device serves the next one.

    make fuzz ARGS="60 vhost_user"
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.system.vhost_user_cases import (
    PAGE,
    SIZE,
    TOP,
    areas,
    config,
    directory,
    entry,
    epoll,
    eventfd,
    inflight,
    memory,
    pipe_reader,
    pipe_writer,
    read_only_memory,
    region,
    table,
    unix_socket,
)
from tests.system.vhost_user_driver import USER
from tests.unit.vhost_user_front_end import state, u64
from vduse.control.features import Feature
from vduse.control.vhost_user import F_PROTOCOL_FEATURES, Message, ProtocolError, Request
from vduse.exports.vhost_user.session import Session
from vduse.testing.harness import BlkStack, blk_stack
from vduse.testing.leaks import Held
from vduse.testing.rawdriver import BASE, S_OK, T_OUT, RawDriver

_FDS: list[Callable[[], list[int]]] = [
    memory,
    eventfd,
    read_only_memory,
    pipe_reader,
    pipe_writer,
    unix_socket,
    directory,
    epoll,
]
_AGREED = Feature.VERSION_1 | F_PROTOCOL_FEATURES

#: Request, payload, kinds of its fds, whether an acknowledgement is wanted.
Step = tuple[int, bytes, list[Callable[[], list[int]]], bool]

small = st.sampled_from([0, 1, 2, 3, 8, 16, 17, 255, 256, 1 << 16, (1 << 32) - 1])
wide = st.sampled_from([0, 1, BASE, USER, USER + 0x400, USER + SIZE - 16, 1 << 63, TOP])
index = st.sampled_from([0, 0, 0, 1, 1, 2, 0xFF, (1 << 32) - 1])


def _u64(*values: int) -> st.SearchStrategy[bytes]:
    return st.sampled_from([*values, 0, 1, (1 << 64) - 1]).map(u64)


_STATE = st.builds(state, index, small)
_VRING_FD = st.one_of(index, st.just(0x100)).map(u64)
_REGION = st.builds(
    region,
    guest=st.sampled_from([BASE, BASE + SIZE, 0, TOP, BASE + 1]),
    size=st.sampled_from([SIZE, PAGE, 1, 0, 1 << 46]),
    at=st.sampled_from([USER, USER + SIZE, TOP]),
    offset=st.sampled_from([0, 0, PAGE, 1, TOP]),
)
#: What comes with each request, when it is right.
_PAYLOADS: dict[int, st.SearchStrategy[bytes]] = {
    Request.SET_FEATURES: _u64(_AGREED, Feature.VERSION_1, _AGREED | Feature.RING_PACKED),
    Request.SET_PROTOCOL_FEATURES: _u64(0x2B, 0x1B02B, 1 << 60),
    Request.SET_STATUS: _u64(0, 1, 3, 0xB, 0xF, 0x80, 0x100),
    Request.SET_MEM_TABLE: st.builds(
        lambda count, size: table(count, entry(BASE, size, at=USER), entry(BASE + SIZE)),
        st.sampled_from([0, 1, 2, 9]),
        st.sampled_from([SIZE, PAGE, 0]),
    ),
    Request.ADD_MEM_REG: _REGION,
    Request.REM_MEM_REG: _REGION,
    Request.SET_VRING_NUM: _STATE,
    Request.SET_VRING_BASE: _STATE,
    Request.GET_VRING_BASE: _STATE,
    Request.SET_VRING_ENABLE: st.builds(state, index, st.sampled_from([0, 1])),
    Request.SET_VRING_ADDR: st.builds(areas, index, wide, wide, wide),
    Request.SET_VRING_KICK: _VRING_FD,
    Request.SET_VRING_CALL: _VRING_FD,
    Request.SET_VRING_ERR: _VRING_FD,
    Request.GET_CONFIG: st.builds(lambda n: config(0, n, bytes(min(n, 256))), small),
    Request.SET_CONFIG: st.builds(lambda at, n: config(at, n, bytes(n)), small, st.just(1)),
    Request.GET_INFLIGHT_FD: st.builds(inflight, st.just(0), st.sampled_from([0, 1, 2, 9])),
    Request.SET_INFLIGHT_FD: st.builds(inflight, st.sampled_from([0, 640, SIZE, 1 << 40])),
    Request.SET_LOG_BASE: st.builds(struct.Struct("=QQ").pack, wide, wide),
}
requests = st.one_of(st.sampled_from(list(Request)), st.sampled_from(list(_PAYLOADS)))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Mostly a message as it should be, in a state where it may be none."""
    request = draw(requests) if draw(st.integers(0, 9)) else draw(st.integers(0, 50))
    payload = draw(_PAYLOADS.get(request, st.just(b"")))
    if not draw(st.integers(0, 9)):
        payload = draw(st.one_of(st.binary(max_size=300), st.just(payload[:-1])))
    usual = {
        Request.SET_VRING_KICK: [eventfd],
        Request.SET_VRING_CALL: [eventfd],
        Request.SET_VRING_ERR: [eventfd],
        Request.ADD_MEM_REG: [memory],
        Request.SET_INFLIGHT_FD: [memory],
        Request.SET_BACKEND_REQ_FD: [unix_socket],
        Request.SET_LOG_BASE: [memory],
        Request.SET_MEM_TABLE: [memory] * min(2, int.from_bytes(payload[:4], "little")),
    }
    fds = usual.get(Request(request), []) if request in set(Request) else []
    if not draw(st.integers(0, 4)):
        fds = draw(st.lists(st.sampled_from(_FDS), max_size=8))
    return request, payload, fds, draw(st.booleans())


def _ring(at: int) -> list[Step]:
    return [
        (Request.SET_VRING_NUM, state(at, 16), [], True),
        (Request.SET_VRING_ADDR, areas(at), [], True),
        (Request.SET_VRING_CALL, u64(at), [eventfd], True),
        (Request.SET_VRING_KICK, u64(at), [eventfd], True),
        (Request.SET_VRING_ENABLE, state(at, 1), [], True),
    ]


#: How a front end begins; cut anywhere.
BEGIN: list[Step] = [
    (Request.SET_FEATURES, u64(_AGREED), [], True),
    (Request.ADD_MEM_REG, region(BASE, SIZE, at=USER), [memory], True),
    *_ring(0),
    *_ring(1),
]


@pytest.fixture(scope="module")
def stack() -> Iterator[BlkStack]:
    with blk_stack(size=1 << 20, queues=2, queue_size=16, packed=True, driver="vhost_vdpa") as one:
        for _ in range(2):  # what is made at first use and kept is made now
            _converse(one, BEGIN)
            _check_usable(one)
        yield one


def _converse(stack: BlkStack, told: list[Step]) -> None:
    driver = stack.framework.bus.vhost(stack.spec.name).open()
    try:
        session = Session(driver, "fuzz")
        try:
            for request, payload, kinds, need_reply in told:
                fds = [fd for make in kinds for fd in make()]
                with suppress(ProtocolError, OSError):
                    reply = session.handle(Message(request, payload, fds, need_reply))
                    for fd in [] if reply is None else reply.fds:
                        os.close(fd)
        finally:
            session.close()
    finally:
        driver.close()


def _check_usable(stack: BlkStack) -> None:
    driver = stack.framework.bus.vhost(stack.spec.name).open()
    try:
        with RawDriver(driver, size=16) as raw:
            assert raw.start()
            assert raw.request(T_OUT, 8, os.urandom(512))[0] == S_OK
    finally:
        driver.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(begin=st.integers(0, len(BEGIN)), told=st.lists(steps(), max_size=30))
@pytest.mark.timeout(0)
def test_any_messages_in_any_order(stack: BlkStack, begin: int, told: list[Step]) -> None:
    before = Held.now()
    _converse(stack, BEGIN[:begin] + told)
    _check_usable(stack)
    assert before.new() == []
