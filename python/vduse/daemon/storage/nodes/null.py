"""``null-co``: nothing. Reads leave the buffer as it is, writes are forgotten."""

from __future__ import annotations

from collections.abc import Iterator

from vduse import _native
from vduse.backends.layers import delay
from vduse.daemon.qmp.arguments import Mistake
from vduse.daemon.storage.nodes.node import Storage, Surroundings
from vduse.daemon.storage.nodes.options import Blockdev

_SECTOR = 512


class NullOptions(Blockdev, frozen=True, kw_only=True, tag="null-co"):
    """Options."""

    size: int = 1 << 30
    #: Nanoseconds before a request is done.
    latency_ns: int = 0
    read_zeroes: bool = False

    def mistakes(self) -> Iterator[Mistake]:
        if self.read_zeroes:
            text = "Parameter 'read-zeroes' does not accept 'on': buffers stay as they are"
            yield Mistake("read-zeroes", text)
        if self.size <= 0 or self.size % _SECTOR or self.size >= 1 << 63:
            text = f"Parameter 'size' expects a multiple of {_SECTOR} above 0"
            yield Mistake("size", text)
        if self.latency_ns < 0:
            yield Mistake("latency-ns", "latency-ns is invalid")

    def open(self, around: Surroundings) -> NullNode:
        return NullNode(self)


class NullNode(Storage):
    """``null-co``."""

    options: NullOptions

    def open_backend(self) -> _native.Backend:
        options = self.options
        backend = _native.Backend.null(options.size)
        if options.latency_ns:
            pause = options.latency_ns / 10**9
            backend = delay(backend, read=pause, write=pause, flush=pause)
        if options.read_only:
            backend = _native.layer_read_only(backend)
        return backend

    @property
    def filename(self) -> str:
        return f'json:{{"driver": "null-co", "size": {self.backend.size}}}'
