"""``qcow2``: an image in a file, with all that it names, or one that another node holds."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec.structs

from vduse import _native
from vduse.control.refusals import in_words
from vduse.daemon.qmp.arguments import Null
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.nodes.file import OnFile, Place, open_as
from vduse.daemon.storage.nodes.node import Node, OnNode, Storage, Surroundings
from vduse.daemon.storage.nodes.options import Blockdev, Child
from vduse.device.workers import shared_pool


class Qcow2Options(Blockdev, frozen=True, kw_only=True, tag="qcow2"):
    """An image."""

    children: ClassVar[tuple[str, ...]] = ("file", "backing")
    takes: ClassVar[str] = "file"

    file: Child
    #: The disk beneath; null: none. Not given: what the image names.
    backing: Child | Null | None = None

    @property
    def on_file(self) -> OnFile | None:
        """The file that it opens itself, with all that the image names: one that is defined within
        and has no name of its own."""
        file = self.file
        return file if isinstance(file, OnFile) and file.node_name is None else None

    def child(self, key: str) -> str | Blockdev | None:
        if key == "file":
            return None if self.on_file else self.file
        # QEMU knows "" as another word for null.
        return None if isinstance(self.backing, Null) else self.backing or None

    def inherited(self, inner: Blockdev) -> Blockdev:
        if inner is self.backing and inner.read_only is None:
            inner = msgspec.structs.replace(inner, read_only=True)
        return super().inherited(inner)

    def open(self, around: Surroundings) -> Node:
        backing = around.child("backing") if self.child("backing") is not None else None
        if self.on_file is not None:
            return Qcow2Node(self, backing)
        return Qcow2OnNode(self, around.child("file"), backing)


class _Image(Storage):
    """An image, wherever it lies."""

    options: Qcow2Options
    #: Beneath it, if that is not what it names; others may use it, too, as long as they do not
    #: write to it.
    _backing: Node | None

    @property
    def lowest(self) -> Node:
        return self

    def expect_writes(self) -> None:
        self.written = True
        for child in self.children:
            if child is not self._backing:
                child.expect_writes()

    def resize(self, size: int) -> None:
        self.check_writable()
        self.expect_writes()
        self.backend.resize(size)

    @property
    def beneath(self) -> dict[str, Any]:
        """Keywords of the native functions."""
        backing = self._backing.backend if self._backing is not None else None
        # What is given counts, not what the image names: null, too.
        return {"backing": backing, "follow": self.options.backing is None}


class Qcow2Node(_Image):
    """``qcow2`` in a file of its own."""

    def __init__(self, options: Qcow2Options, backing: Node | None) -> None:
        """QmpError, OSError."""
        assert options.on_file is not None
        inherited = options.inherited(options.on_file)
        assert isinstance(inherited, OnFile)
        self._file = inherited
        self._backing = backing
        super().__init__(options, (backing,) if backing is not None else (), shared=backing)
        self._place = Place(inherited.filename)

    def open_backend(self) -> _native.Backend:
        return open_as(self._file, self._open)

    def _open(
        self, path: str, *, read_only: bool, direct: bool, engine: str, lock: bool
    ) -> _native.Backend:
        return _native.qcow2_backend(
            path,
            shared_pool(),
            read_only=read_only,
            direct=direct,
            engine=engine,
            lock=lock,
            **self.beneath,
        )

    def check_way_back(self) -> None:
        self._place.check()

    @property
    def filename(self) -> str:
        return self._file.filename

    @property
    def direct(self) -> bool:
        cache = self._file.cache
        return cache is not None and cache.direct


class Qcow2OnNode(_Image, OnNode):
    """``qcow2`` in another node, which it has for itself."""

    def __init__(self, options: Qcow2Options, child: Node, backing: Node | None) -> None:
        """QmpError, OSError."""
        self._child = child
        self._backing = backing
        if child.read_only and options.read_only is not True and not options.auto_read_only:
            raise QmpError("Block node is read-only")
        super().__init__(options, child, shared=backing)

    def layer(self, below: _native.Backend) -> _native.Backend:
        read_only = self.options.read_only is True or self._child.read_only
        try:
            return _native.qcow2_layer(
                below,
                shared_pool(),
                name=self._child.filename,
                read_only=read_only,
                **self.beneath,
            )
        except OSError as error:
            raise QmpError(f"Could not open '{self.name}': {in_words(error)}") from None

    @property
    def filename(self) -> str:
        return self._child.filename

    @property
    def direct(self) -> bool:
        return self._child.direct
