"""What a node is."""

from __future__ import annotations

import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, TypeVar

from vduse import _native
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.models import CacheInfo, ImageInfo, NodeInfo
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.objects.options import Object

AnyObject = TypeVar("AnyObject", bound=Object)


class Surroundings(Protocol):
    """What a node's options are opened with."""

    def child(self, key: str) -> Node:
        """The node that is the child under ``key``."""

    def object(self, name: str, kind: type[AnyObject]) -> AnyObject:
        """By its id; it stays as long as the node. QmpError: there is none of that type."""


class Node(ABC):
    """A named backend. ``users``: ids of exports and names of nodes that hold it."""

    def __init__(self, options: Blockdev, children: tuple[Node, ...] = ()) -> None:
        assert options.node_name is not None
        self.options = options
        self.name = options.node_name
        self.children = children
        self.users: set[str] = set()
        #: Children that were defined within this one, and end with it.
        self.owned: tuple[Node, ...] = ()
        #: Something may have been written to it.
        self.written = False

    @property
    def driver(self) -> str:
        """QEMU's name of it."""
        return self.options.driver

    @property
    @abstractmethod
    def backend(self) -> _native.Backend:
        """What stores the bytes."""

    @property
    @abstractmethod
    def filename(self) -> str:
        """What the bytes are stored in, as QEMU shows it."""

    @property
    @abstractmethod
    def base(self) -> Storage:
        """The node whose backend is this one's too; itself where it has one of its own."""

    @property
    def lowest(self) -> Node:
        """The node that a resize of this one resizes."""
        return self.children[0].lowest if self.children else self

    @property
    def direct(self) -> bool:
        """Whether the page cache is passed by."""
        return self.options.cache is not None and self.options.cache.direct

    @property
    def discard(self) -> bool:
        """Whether discards are passed on."""
        return self.options.discard == "unmap"

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self.backend.read_only

    @property
    def first_read_only(self) -> Node:
        """The highest, of this one and those it lies on, that is so by its options; itself where
        none is."""
        node: Node = self
        while not node.options.read_only:
            if not node.children:
                return self
            node = node.children[0]
        return node

    def expect_writes(self) -> None:
        """What follows may write to it, and to those that it lies on."""
        self.written = True
        for child in self.children:
            child.expect_writes()

    def check_writable(self) -> None:
        """QmpError: writes are refused."""
        if self.read_only:
            raise QmpError(f"Node '{self.name}' is read only")

    def check_way_back(self) -> None:
        """QmpError: once it is closed, its options would not open the same again."""
        return

    def resize(self, size: int) -> None:
        """Makes it ``size`` bytes. QmpError; OSError."""
        raise QmpError("Image format driver does not support resize")

    def info(self) -> NodeInfo:
        """As query-named-block-nodes shows it."""
        return NodeInfo(
            node_name=self.name,
            drv=self.driver,
            file=self.filename,
            ro=self.read_only,
            image=ImageInfo(
                filename=self.filename, format=self.driver, virtual_size=self.backend.size
            ),
            cache=CacheInfo(direct=self.direct),
        )

    def close(self) -> None:
        """Flushes and closes what it has of its own. OSError: it has ended all the same, and what
        was written may be lost."""
        return


class Filter(Node):
    """A node that is as its child is, but for what it says itself."""

    @property
    def child(self) -> Node:
        """What it lies on."""
        return self.children[0]

    @property
    def filename(self) -> str:
        return self.child.filename

    @property
    def direct(self) -> bool:
        return self.child.direct

    @property
    def discard(self) -> bool:
        return super().discard and self.child.discard

    @property
    def read_only(self) -> bool:
        return self.options.read_only is True or self.child.read_only

    def resize(self, size: int) -> None:
        self.check_writable()
        self.child.resize(size)


class Storage(Node):
    """A node that has a backend of its own: for any number of users that share it, or for one node
    on it that has it for itself."""

    def __init__(
        self, options: Blockdev, children: tuple[Node, ...] = (), *, shared: Node | None = None
    ) -> None:
        """``shared``: one that it lies on and that others may use beside it. QmpError, OSError."""
        super().__init__(options, children)
        self._claims = _Claims(self.name)
        self._shared = shared.base if shared is not None else None
        with ExitStack() as undo:
            if self._shared is not None:
                self._shared.share(self.name)
                undo.callback(self._shared.unshare, self.name)
            self._backend = self.open_backend()
            undo.pop_all()

    @abstractmethod
    def open_backend(self) -> _native.Backend:
        """By the options. May wait: no lock is held. QmpError, OSError."""

    def close_backend(self) -> None:
        """Flushes and ends it. OSError: it has ended all the same, but for EBUSY."""
        self._backend.close()

    @property
    def backend(self) -> _native.Backend:
        return self._backend

    @property
    def base(self) -> Storage:
        return self

    def share(self, user: str) -> None:
        """An export or a node uses the backend beside others, until :meth:`unshare`. QmpError: a
        node has it for itself."""
        self._claims.share(user)

    def unshare(self, user: str) -> None:
        """It does not any more."""
        self._claims.drop(user)

    def take(
        self, taker: str, layer: Callable[[_native.Backend], _native.Backend]
    ) -> _native.Backend:
        """A layer on the backend, for the node ``taker``, which has it for itself until it has
        released the layer and calls :meth:`give_back`. QmpError: there are other users; what
        ``layer`` raises."""
        self._claims.take(taker)
        try:
            return layer(self._backend)
        except BaseException:
            self.give_back(taker)
            raise

    def give_back(self, taker: str) -> None:
        """The layer is released: the backend is free again."""
        self._claims.drop(taker)

    def look_again(self) -> None:
        """At the size. Beneath a layer, the layer's node looks. OSError."""
        if not self._claims.taken:
            self._backend.refresh_size()

    def close(self) -> None:
        try:
            self.close_backend()
        except OSError as error:
            # Where nothing was written, a flush that fails is no loss.
            if self.written or error.errno == errno.EBUSY:
                raise
        finally:
            if self._shared is not None:
                self._shared.unshare(self.name)


class OnNode(Storage):
    """A node whose backend is a layer on its child's, which it has for itself: the child cannot be
    exported beside it, or lie beneath another such node. The child goes on when it ends."""

    def __init__(self, options: Blockdev, child: Node, *, shared: Node | None = None) -> None:
        """QmpError, OSError."""
        self._below = child.base
        children = (child,) if shared is None else (child, shared)
        super().__init__(options, children, shared=shared)

    @abstractmethod
    def layer(self, below: _native.Backend) -> _native.Backend:
        """On ``below``; its ``release`` ends it and leaves that open. May wait. QmpError,
        OSError."""

    def open_backend(self) -> _native.Backend:
        return self._below.take(self.name, self.layer)

    def close_backend(self) -> None:
        try:
            self._backend.release()
        finally:
            self._below.give_back(self.name)


class _Claims:
    """Who uses a backend: sharers, or a single taker. Any thread."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._users: set[str] = set()
        self._taker = ""

    @property
    def taken(self) -> bool:
        return bool(self._taker)

    def share(self, user: str) -> None:
        """QmpError."""
        with self._lock:
            if taker := self._taker:
                raise QmpError(f"Node '{self._node}' is used as '{taker}'s child: use '{taker}'")
            self._users.add(user)

    def take(self, taker: str) -> None:
        """QmpError."""
        with self._lock:
            if other := self._taker:
                raise QmpError(f"Node '{self._node}' is used as '{other}'s child: use '{other}'")
            for user in sorted(self._users):
                raise QmpError(f"Node '{self._node}' is in use: by {user}")
            self._taker = taker

    def drop(self, user: str) -> None:
        with self._lock:
            self._users.discard(user)
            if self._taker == user:
                self._taker = ""
