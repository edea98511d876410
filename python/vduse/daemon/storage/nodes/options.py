"""The options that all drivers have (QEMU's BlockdevOptions). Sizes are bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import msgspec.structs

from vduse.daemon.qmp.arguments import Mistake, Model

if TYPE_CHECKING:
    from vduse.daemon.storage.nodes.node import Node, Surroundings


class Cache(Model, frozen=True, kw_only=True):
    """BlockdevCacheOptions."""

    #: O_DIRECT.
    direct: bool = False
    no_flush: bool = False

    def mistakes(self) -> Iterator[Mistake]:
        if self.no_flush:
            text = "Parameter 'cache.no-flush' does not accept 'on': flushes reach the disk"
            yield Mistake("no-flush", text)


class Blockdev(Model, frozen=True, kw_only=True, tag_field="driver"):
    """The base of all drivers' options: as a type it is any of those. None: not given."""

    #: Keys whose values are children: a node's name, or a node defined within.
    children: ClassVar[tuple[str, ...]] = ()
    #: The one of those that it has for itself: no other node and no export may use it beside.
    takes: ClassVar[str] = ""
    #: Keys whose values are ids of objects, and the type of those (qom-type).
    objects: ClassVar[dict[str, str]] = {}

    node_name: str | None = None
    discard: Literal["ignore", "unmap"] | None = None
    cache: Cache | None = None
    read_only: bool | None = None
    auto_read_only: bool = False
    detect_zeroes: Literal["off"] = "off"

    @property
    def driver(self) -> str:
        """QEMU's name of it."""
        return str(self.__struct_config__.tag)

    def child(self, key: str) -> str | Blockdev | None:
        """What is given under ``key``, one of :attr:`children`."""
        given: str | Blockdev | None = getattr(self, key.replace("-", "_"))
        return given

    def named(self, name: str) -> Blockdev:
        """The same with a node's name."""
        return msgspec.structs.replace(self, node_name=name)

    def inherited(self, inner: Blockdev) -> Blockdev:
        """``inner``, a child that is defined within, with what it has from this one (QEMU's
        bdrv_inherited_options)."""
        given: dict[str, Any] = {
            # Discards are the parent's own affair.
            "discard": inner.discard or "unmap",
            "cache": inner.cache or self.cache,
            "read_only": self.read_only if inner.read_only is None else inner.read_only,
            "auto_read_only": inner.auto_read_only or self.auto_read_only,
        }
        return msgspec.structs.replace(inner, **given)

    @abstractmethod
    def open(self, around: Surroundings) -> Node:
        """The node; its children are open. QmpError, OSError."""


#: A node's name, or a node that is defined within.
Child: TypeAlias = str | Blockdev
