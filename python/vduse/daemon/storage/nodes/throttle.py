"""``throttle``: a filter that holds its child to the limits of a throttle group."""

from __future__ import annotations

from typing import ClassVar

from vduse import _native
from vduse.backends.layers import throttle
from vduse.daemon.storage.nodes.node import Filter, Node, Storage, Surroundings
from vduse.daemon.storage.nodes.options import Blockdev, Child
from vduse.daemon.storage.objects.throttle_group import ThrottleGroup


class ThrottleOptions(Blockdev, frozen=True, kw_only=True, tag="throttle"):
    """Options."""

    children: ClassVar[tuple[str, ...]] = ("file",)
    objects: ClassVar[dict[str, str]] = {"throttle-group": "throttle-group"}

    throttle_group: str
    file: Child

    def open(self, around: Surroundings) -> ThrottleNode:
        return ThrottleNode(
            self, around.child("file"), around.object(self.throttle_group, ThrottleGroup)
        )


class ThrottleNode(Filter, Storage):
    """``throttle``: others may use the child beside it, without its limits."""

    def __init__(self, options: ThrottleOptions, child: Node, group: ThrottleGroup) -> None:
        """QmpError."""
        self._group = group
        super().__init__(options, (child,), shared=child)

    def open_backend(self) -> _native.Backend:
        return throttle(self.child.backend, self._group.throttle, shared=True)
