"""The nodes by name, and which lies on which."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from graphlib import TopologicalSorter
from typing import Protocol

from vduse.control.spelling import did_you_mean
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.ids import is_id
from vduse.daemon.storage.nodes.drivers import DRIVERS
from vduse.daemon.storage.nodes.family import family, family_names, inner_name, with_owned
from vduse.daemon.storage.nodes.node import Node
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.nodes.plan import Plan, plan
from vduse.daemon.storage.objects.store import AnyObject, Objects
from vduse.daemon.storage.reservations import Reservations, Work
from vduse.device.device import DRAIN_TIMEOUT
from vduse.device.within import together

log = logging.getLogger(__name__)

assert DRIVERS  # the import makes Blockdev stand for all of them

_LONGEST_NODE_NAME = 31
#: Of names.
_KIND = "node"


def name_mistake(name: str) -> str:
    """Why a node cannot be called so; empty: it can."""
    if not is_id(name):
        return f"Invalid node-name: '{name}'"
    return "Node name too long" if len(name) > _LONGEST_NODE_NAME else ""


class Graph:
    """Methods may be called from any thread; nodes are opened and closed without the lock, their
    names reserved meanwhile. Looks (:meth:`find`, iteration) are made with the lock held."""

    def __init__(self, objects: Objects, reservations: Reservations) -> None:
        """``objects``: what nodes are made with."""
        self._objects = objects
        self._reservations = reservations
        self._lock = reservations.lock
        self._nodes: dict[str, Node] = {}
        #: By node: the sets of users that it is in.
        self._holds: dict[str, list[set[str]]] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def find(self, name: str | None, device: str | None = None) -> Node:
        """QmpError. ``device``: QEMU's devices are what a virtual machine has: here there is none
        of any name."""
        if name is not None and name in self._nodes:
            return self._nodes[name]
        self._reservations.check(_KIND, name or "")
        known = did_you_mean(name, self._nodes) if name else ""
        raise QmpError(f"Cannot find device='{device or ''}' nor node-name='{name or ''}'{known}")

    def add(self, options: Blockdev) -> None:
        """A node, with those that are defined within. QmpError, OSError: then there is none of
        them."""
        if options.node_name is None:
            raise QmpError("'node-name' must be specified for the root node")
        if options.node_name.startswith("#"):
            raise QmpError(name_mistake(options.node_name))
        names = family_names(options)
        with ExitStack() as reserved:
            with self._lock:
                self._check_names(names)
                reserved.enter_context(self._reservations.held(_KIND, names, Work.OPENING))
            self.enter(self.open([options]))

    def remove(self, name: str) -> None:
        """A node that nothing uses, with those that were defined within. QmpError, OSError."""
        with ExitStack() as reserved:
            with self._lock:
                going = self._unused(name)
                names = [node.name for node in going]
                reserved.enter_context(self._reservations.held(_KIND, names, Work.CLOSING))
                self.take_out(going)
            self.end(going)

    def plan(self, given: Sequence[Blockdev]) -> Plan | None:
        """How nodes come to other options; with the lock held. None: they have them. QmpError: they
        cannot have them."""
        for options in given:
            if options.node_name is None:
                raise QmpError("node-name not specified")
            self._present(options.node_name)
        found = plan(self._nodes, given)
        if found is not None:
            self._check_names(found.coming_names, going=found.going_names)
            for name in found.needed:
                self.find(name)
        return found

    def take_out(self, going: Iterable[Node]) -> None:
        """Nobody finds these nodes any more; with the lock held."""
        for node in going:
            del self._nodes[node.name]

    def enter(self, nodes: Iterable[Node]) -> None:
        """These are found from now on. Later ones may lie on earlier ones."""
        with self._lock:
            self._nodes.update((node.name, node) for node in nodes)

    def open(self, roots: Iterable[Blockdev]) -> list[Node]:
        """Nodes that nobody finds yet; their names are reserved. Later ones may lie on earlier
        ones. QmpError, OSError: then none of them."""
        made: dict[str, Node] = {}
        with ExitStack() as undo:
            undo.callback(lambda: self.end(list(made.values())[::-1]))
            for options in roots:
                self._make(options, made)
            undo.pop_all()
        return list(made.values())

    def end(self, going: Sequence[Node]) -> None:
        """Closes nodes that nobody finds any more; the highest come first. QmpError, OSError: of
        the first that failed; all have ended."""
        with ExitStack() as closed:
            for node in reversed(going):
                closed.callback(self._release, node.name)
                closed.callback(node.close)

    def held(self, names: Iterable[str], work: Work) -> AbstractContextManager[None]:
        """Reserves nodes that there are. QmpError: a command is at work on one."""
        return self._reservations.held(_KIND, names, work)

    def close(self) -> None:
        """Ends all at once, each after those that lie on it; what fails is in the log."""
        with self._lock:
            above: dict[Node, list[Node]] = {node: [] for node in self._nodes.values()}
            self._nodes.clear()
        for node in above:
            for child in node.children:
                above[child].append(node)
        ended = {node: threading.Event() for node in above}

        def end(node: Node) -> None:
            for each in above[node]:
                ended[each].wait()
            try:
                node.close()
            finally:
                ended[node].set()

        order = list(TopologicalSorter(above).static_order())
        errors = together(DRAIN_TIMEOUT, [partial(end, node) for node in order])
        for node, error in zip(order, errors, strict=True):
            if isinstance(error, OSError | QmpError):
                log.error("node %s: at its end: %s", node.name, error, extra={"node": node.name})
            elif error is not None:
                raise error

    def _check_names(self, names: list[str], going: Collection[str] = ()) -> None:
        for name in names:
            # Those that were given no name have one of ours.
            if not name.startswith("#") and (mistake := name_mistake(name)):
                raise QmpError(mistake)
            if (name in self._nodes and name not in going) or names.count(name) > 1:
                raise QmpError(f"Duplicate nodes with node-name='{name}'")

    def _present(self, name: str) -> Node:
        """QmpError."""
        if name not in self._nodes:
            self._reservations.check(_KIND, name)
            raise QmpError(f"Failed to find node with node-name='{name}'")
        return self._nodes[name]

    def _unused(self, name: str) -> list[Node]:
        """A node, and those within it; the highest first. QmpError: something uses one."""
        found = with_owned(self._present(name))
        for each in found:
            for user in sorted(each.users - {other.name for other in found}):
                # QEMU's words: exports block it, parents hold it.
                kind = "Block device" if user in self._holds else "Node"
                raise QmpError(f"{kind} {each.name} is in use: by {user}")
        return found

    def _make(self, options: Blockdev, there: dict[str, Node]) -> None:
        """A node whose name is reserved, with those within; adds them to ``there``, which it may
        lie on. QmpError, OSError: then none."""
        with ExitStack() as undo:
            with self._lock:
                children = self._hold(options, there)
                for name in family_names(options):
                    undo.callback(self._release, name)
            made: list[Node] = []
            undo.callback(lambda: self.end(made[::-1]))
            self._open(options, children, made)
            with self._lock:
                # Who ends the daemon has looked already.
                self._reservations.check_open()
                for node in made:
                    there[node.name] = node
                    for child in node.owned:
                        child.users.add(node.name)
                        self._holds[node.name].append(child.users)
            undo.pop_all()

    def _hold(self, options: Blockdev, there: Mapping[str, Node]) -> dict[str, Node]:
        """Makes the nodes that it names stay, from among ``there`` or all; those. QmpError."""
        children: dict[str, Node] = {}
        holds: dict[str, list[set[str]]] = {}
        for each in family(options):
            users = holds[each.node_name or ""] = []
            for key in each.children:
                if isinstance(given := each.child(key), str):
                    children[given] = there.get(given) or self.find(given, given)
                    users.append(children[given].users)
        for node, users in holds.items():
            for each_users in users:
                each_users.add(node)
        self._holds.update(holds)
        return children

    def _release(self, name: str) -> None:
        """Of a node that has ended: what it held."""
        with self._lock:
            for users in self._holds.pop(name, ()):
                users.discard(name)

    def _open(self, options: Blockdev, held: Mapping[str, Node], made: list[Node]) -> Node:
        """Opens a node after its children; adds them to ``made``."""
        children, owned = {}, []
        for key in options.children:
            given = options.child(key)
            if isinstance(given, str):
                children[key] = held[given]
            elif given is not None:
                inner = options.inherited(given).named(inner_name(options.node_name, given))
                children[key] = self._open(inner, held, made)
                owned.append(children[key])
        node = options.open(_Surroundings(children, partial(self._object, options.node_name)))
        node.owned = tuple(owned)
        made.append(node)
        return node

    def _object(self, node: str | None, name: str, kind: type[AnyObject]) -> AnyObject:
        """Makes an object stay, for a node that is being opened. QmpError."""
        assert node is not None
        with self._lock:
            found = self._objects.find(name, kind)
            found.users.add(node)
            self._holds[node].append(found.users)
            return found


class _Surroundings:
    """A :class:`~vduse.daemon.storage.nodes.node.Surroundings`."""

    def __init__(self, children: dict[str, Node], find: _Find) -> None:
        self._children = children
        self.object = find

    def child(self, key: str) -> Node:
        return self._children[key]


class _Find(Protocol):
    """Finds an object, which stays as long as the node."""

    def __call__(self, name: str, kind: type[AnyObject]) -> AnyObject: ...
