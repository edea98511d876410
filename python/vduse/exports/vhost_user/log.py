"""Dirty logging: what a front end says of it, as the driver's one log (vhost-user specification,
"Migration")."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vduse.bus.driver import Driver, LogDriver
from vduse.control import vhost_user as vu
from vduse.control.abi import DirtyLog
from vduse.control.vhost_user import Message, ProtocolError
from vduse.exports.vhost_user.memory import Memory
from vduse.exports.vhost_user.ring import Ring

#: Bytes of memory a bit (VHOST_LOG_PAGE).
_PAGE = 4096


class Log:
    """The memory of SET_LOG_BASE, and what the driver was last told."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        #: File, offset and bytes.
        self._base: tuple[int, int, int] | None = None
        self._told: DirtyLog | None = None
        #: The driver has another base, if it has one.
        self._base_is_new = False

    @property
    def offered(self) -> bool:
        """Whether the device marks what it writes."""
        return isinstance(self._driver, LogDriver) and bool(self._driver.can_log())

    @contextmanager
    def new_base(self, message: Message) -> Iterator[None]:
        """SET_LOG_BASE; takes its fd. ProtocolError: not such a file. What fails in the block
        leaves the former base in its place."""
        size, offset = vu.unpack_log(message)
        there = os.fstat(message.fds[0]).st_size
        if not size or offset + size > there:
            raise ProtocolError(f"log of {size} bytes at {offset} of a file of {there}")
        former = self._base, self._base_is_new
        self._base, self._base_is_new = (message.fds[0], offset, size), True
        try:
            yield
        except BaseException:
            self._base, self._base_is_new = former
            raise
        message.fds.clear()
        if former[0] is not None:
            os.close(former[0][0])

    def follow(self, rings: Sequence[Ring] | None, memory: Memory, *, packed: bool) -> None:
        """Has the driver mark what ``rings`` and their requests write; None: nothing. Without a
        base there is nowhere to. ProtocolError: it has no bit for some of it; OSError."""
        log = None
        if rings is not None and self._base is not None:
            _, offset, size = self._base
            log = DirtyLog(offset, size, _used(rings, size, packed))
            _check(memory.end, size, "the guest's memory")
        if log == self._told and not (self._base_is_new and log is not None):
            return
        if isinstance(self._driver, LogDriver):
            self._driver.set_log(log, -1 if self._base is None else self._base[0])
        self._told, self._base_is_new = log, self._base_is_new and log is None

    def forgotten(self) -> None:
        """The device was reset: it marks nothing."""
        self._told = None

    def close(self) -> None:
        """Forgets the base."""
        if self._base is not None:
            os.close(self._base[0])
        self._base = None


def _used(rings: Sequence[Ring], size: int, packed: bool) -> tuple[tuple[int, int], ...]:
    used = []
    for ring in rings:
        if ring.addr is not None and ring.addr.logged:
            end = ring.addr.log + ring.used_bytes(packed=packed)
            _check(end, size, f"the used ring of virtqueue {ring.index}")
            used.append((ring.index, ring.addr.log))
    return tuple(used)


def _check(end: int, size: int, what: str) -> None:
    if end > size * 8 * _PAGE:
        raise ProtocolError(f"a log of {size} bytes ends before {what}, which ends at {end:#x}")
