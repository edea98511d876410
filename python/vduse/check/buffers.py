"""Where the buffers of requests lie: among canaries, each with a name or a permission."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from vduse.check.canvas import Canvas
from vduse.check.request import PENDING, Request
from vduse.testing.rawdriver import Part, header
from vduse.testing.rings import DESCRIPTOR_SIZE, INDIRECT, NEXT, WRITE, PackedRing, SplitRing

#: ``pieces``: header and data in several descriptors, the status behind the data in one.
Layout = Literal["plain", "pieces"]


class Buffers:
    """Makes chains in the memory of one session."""

    def __init__(self, canvas: Canvas, allocate: Callable[[int], int]) -> None:
        """``allocate`` gives room in the canvas."""
        self._canvas = canvas
        self._allocate = allocate

    def iova(self, offset: int) -> int:
        """Of an offset of the memory."""
        return self._canvas.iova + offset

    def readable(self, data: bytes, what: str) -> int:
        """A device-readable buffer; its offset."""
        at = self._allocate(len(data))
        self._canvas.write(at, data)
        self._canvas.name(at, len(data), what)
        return at

    def status(self, request: Request) -> Part:
        """Room for a request's status, as a descriptor."""
        return self._writable(request, [1])[0]

    def chain(self, request: Request, data: bytes, layout: Layout) -> list[Part]:
        """A legal request's."""
        head, pieces = header(request.kind, request.sector), layout == "pieces"
        chain = self._parts(head, 10 if pieces else len(head), "a request's header")
        if data:
            half = len(data) // 2 if pieces else len(data)
            chain += self._parts(data, half, "the data of a write")
        room = request.room
        if not room:
            return [*chain, self.status(request)]
        sizes = [room // 2, room - room // 2 + 1] if pieces else [room, 1]
        return chain + self._writable(request, sizes)

    def table(self, ring: SplitRing | PackedRing, chain: Sequence[Part]) -> Part:
        """A chain in an indirect table, as the one descriptor that names it."""
        size = DESCRIPTOR_SIZE * len(chain)
        at = self._allocate(size)
        for place, (addr, length, flags) in enumerate(chain):
            if isinstance(ring, PackedRing):
                ring.indirect(at, place, addr, length, flags)
            else:
                last = place + 1 == len(chain)
                more, following = (0, 0) if last else (NEXT, place + 1)
                ring.indirect(at, place, addr, length, flags | more, following)
        self._canvas.name(at, size, "an indirect descriptor table")
        return self.iova(at), size, INDIRECT

    def _parts(self, data: bytes, cut: int, what: str) -> list[Part]:
        pieces = [piece for piece in (data[:cut], data[cut:]) if piece]
        return [(self.iova(self.readable(piece, what)), len(piece), 0) for piece in pieces]

    def _writable(self, request: Request, sizes: Sequence[int]) -> list[Part]:
        """Buffers for the data, the last byte for the status."""
        parts = []
        left = request.room if len(sizes) > 1 else 0
        for size in sizes:
            at = self._allocate(size)
            self._canvas.write(at, bytes([PENDING]) * size)
            self._canvas.grant(at, size)
            request.granted.append(at)
            request.data_at.append((at, min(size, left)))
            left -= min(size, left)
            request.status_at = at + size - 1
            parts.append((self.iova(at), size, WRITE))
        return parts
