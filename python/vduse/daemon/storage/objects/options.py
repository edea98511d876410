"""The options that all objects have (QEMU's ObjectOptions)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from vduse.daemon.qmp.arguments import Model


class ObjectOptions(Model, frozen=True, kw_only=True, tag_field="qom-type"):
    """The base of all types' options: as a type it is any of those."""

    id: str

    @abstractmethod
    def open(self) -> Object:
        """The object. QmpError."""

    @property
    def qom_type(self) -> str:
        """QEMU's name of the type."""
        return str(self.__struct_config__.tag)


class Object:
    """An object from object-add to object-del. ``users``: names of those that hold it."""

    #: What is said of an id that none of this type has, before and after it: QEMU's words.
    missing: ClassVar[tuple[str, str]]

    def __init__(self, options: ObjectOptions) -> None:
        self.options = options
        self.users: set[str] = set()
