"""``raw``: another node, or a part of it, under a name of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from vduse import _native
from vduse.daemon.qmp.arguments import Mistake
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.nodes.node import Filter, Node, Storage, Surroundings
from vduse.daemon.storage.nodes.options import Blockdev, Child


class RawOptions(Blockdev, frozen=True, kw_only=True, tag="raw"):
    """The raw format on another node."""

    children: ClassVar[tuple[str, ...]] = ("file",)

    file: Child
    #: The part of it that is the disk; without a size, all the rest.
    offset: int | None = None
    size: int | None = None

    def mistakes(self) -> Iterator[Mistake]:
        for name, value in (("offset", self.offset), ("size", self.size)):
            if value is not None and not 0 <= value < 1 << 63:
                text = f"Parameter '{name}' expects a number from 0 to 2^63 - 1"
                yield Mistake(name, text)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its child: then it has no backend of its own."""
        return self.offset is None and self.size is None

    def open(self, around: Surroundings) -> Node:
        child = around.child("file")
        if child.read_only and self.read_only is False:
            raise QmpError("Block node is read-only")
        return RawNode(self, child) if self.is_whole else WindowNode(self, child)


class RawNode(Filter):
    """``raw``."""

    def __init__(self, options: RawOptions, child: Node) -> None:
        super().__init__(options, (child,))

    @property
    def backend(self) -> _native.Backend:
        return self.child.backend

    @property
    def base(self) -> Storage:
        return self.child.base


class WindowNode(Filter, Storage):
    """``raw`` with an offset or a size: the child is not its own, others may use it, too."""

    options: RawOptions

    def __init__(self, options: RawOptions, child: Node) -> None:
        """QmpError, OSError."""
        super().__init__(options, (child,), shared=child)

    def open_backend(self) -> _native.Backend:
        return self.child.backend.window(self.options.offset or 0, self.options.size)

    def resize(self, size: int) -> None:
        raise QmpError("Cannot resize a part of a node")
