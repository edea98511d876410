"""A device program on the embedded channel."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tests.contract.local_program import LocalNode, LocalProgram
from vduse import _native
from vduse.channel.embedded import EmbeddedControl
from vduse.channel.packet import close_fds


class EmbeddedNode(LocalNode):
    """With any ioctl."""

    def ioctl(self, nr: int, payload: bytes, fd: int | None = None) -> bytes:
        calls = self.channel.resolver()
        assert isinstance(calls, _native.CallSocket)
        return _call(calls, nr, payload, [] if fd is None else [fd])


class _Control(EmbeddedControl):
    def ioctl(self, nr: int, payload: bytes) -> bytes:
        return _call(self._calls, nr, payload, [])


class EmbeddedProgram(LocalProgram):
    """Takes over the control socket."""

    def __init__(self, control: int) -> None:
        super().__init__(_Control(control), EmbeddedNode)


def _call(calls: _native.CallSocket, nr: int, payload: bytes, fds: Sequence[int]) -> bytes:
    result, answer, got = calls.call(nr, payload, fds)
    close_fds(got)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return answer
