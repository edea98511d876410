"""What lies on what: the order in which things can be made, and what does not go together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from vduse.control.spelling import did_you_mean
from vduse.daemon.storage.exports.export import ExportOptions
from vduse.daemon.storage.exports.nbd import NbdOptions
from vduse.daemon.storage.exports.nbd_server import NbdServerOptions
from vduse.daemon.storage.exports.vduse_blk import VduseBlkOptions
from vduse.daemon.storage.exports.vhost_user_blk import VhostUserBlkOptions
from vduse.daemon.storage.ids import is_id
from vduse.daemon.storage.models import ChardevOptions, MonitorOptions
from vduse.daemon.storage.nodes.graph import name_mistake
from vduse.daemon.storage.nodes.options import Blockdev, Child
from vduse.daemon.storage.nodes.raw import RawOptions

#: Paths and what is wrong there.
Wrong = Iterator[tuple[str, str]]

#: The order of kinds.
_ORDER = ("object", "blockdev", "nbd-server", "export", "chardev", "monitor")


@dataclass(frozen=True, eq=False)
class Entry:
    """A table of the document's."""

    #: The option's name.
    kind: str
    #: In the document.
    path: str
    name: str
    raw: dict[str, Any]
    #: Of the kind's model, without what is wrong in it; None: too much is.
    value: Any


class Plan:
    """Of all entries. Those with mistakes count as there, so that nobody misses them."""

    def __init__(self, entries: Iterable[Entry], metrics: str | None = None) -> None:
        """``metrics``: where they are served, HOST:PORT or unix:PATH."""
        self._entries = list(entries)
        self._metrics = metrics
        self._nodes = {entry.name: entry for entry in self._of("blockdev")}

    def ordered(self) -> list[Entry]:
        """In the order in which they can be made."""
        order: dict[Entry, None] = {}

        def add(entry: Entry, above: tuple[Entry, ...] = ()) -> None:
            for name in _below(entry.value):
                if name in self._nodes and self._nodes[name] not in above:
                    add(self._nodes[name], (*above, entry))
            order.setdefault(entry)

        for kind in _ORDER:
            for entry in self._of(kind):
                add(entry)
        return list(order)

    def mistakes(self) -> Wrong:
        """All of them."""
        yield from self._names()
        yield from self._graph()
        yield from self._taken()
        yield from self._exports()
        yield from self._monitors()
        yield from self._sockets()

    def _of(self, kind: str) -> list[Entry]:
        return [entry for entry in self._entries if entry.kind == kind]

    def _names(self) -> Wrong:
        for entry in self._entries:
            if entry.kind == "blockdev":
                if mistake := name_mistake(entry.name):
                    yield entry.path, mistake
            elif entry.kind in ("object", "export") and not is_id(entry.name):
                yield entry.path, f"'{entry.name}' is no identifier"

    def _graph(self) -> Wrong:
        known = {entry.name: entry.path for entry in self._of("blockdev")}
        for entry in self._of("blockdev"):
            if entry.value is None:
                continue
            for path, options in _all(entry.value, entry.path):
                if path != entry.path and options.node_name is not None:
                    if options.node_name in known:
                        text = f"Duplicate nodes with node-name='{options.node_name}'"
                        yield f"{path}.node-name", text
                    known.setdefault(options.node_name, path)
                for key in options.children:
                    child = options.child(key)
                    if isinstance(child, str) and child not in self._nodes:
                        hint = did_you_mean(child, self._nodes)
                        yield f"{path}.{key}", f"there is no node '{child}'{hint}"
                yield from self._objects(path, options)
            if self._lies_on(entry, entry):
                yield entry.path, f"node '{entry.name}' lies on itself"

    def _objects(self, path: str, options: Blockdev | NbdServerOptions) -> Wrong:
        """Those that options at ``path`` name."""
        types = {entry.name: str(entry.raw.get("qom-type")) for entry in self._of("object")}
        for key, kind in options.objects.items():
            name = getattr(options, key.replace("-", "_"))
            if name is not None and types.get(name) != kind:
                hint = did_you_mean(name, [each for each, of in types.items() if of == kind])
                yield f"{path}.{key}", f"there is no {kind} '{name}'{hint}"

    def _lies_on(self, entry: Entry, target: Entry) -> bool:
        todo, seen = [entry], set()
        while todo:
            for name in _below(todo.pop().value):
                below = self._nodes.get(name)
                if below is target:
                    return True
                if below is not None and below.name not in seen:
                    seen.add(below.name)
                    todo.append(below)
        return False

    def _taken(self) -> Wrong:
        """Nodes that one has for itself, and another uses beside it."""
        takers: dict[str, str] = {}
        for takes, path, user, child in sorted(self._uses(), key=lambda use: not use[0]):
            base = self._base(child)
            if base in takers:
                taker = takers[base]
                yield path, f"Node '{base}' is used as '{taker}'s child: use '{taker}'"
            elif takes and base is not None:
                takers[base] = user

    def _uses(self) -> Iterator[tuple[bool, str, str, Child]]:
        """Of nodes' backends: whether the user has it for itself, where it says so, its table's
        name, the node."""
        for entry in self._entries:
            if isinstance(entry.value, ExportOptions):
                yield False, f"{entry.path}.node-name", entry.name, entry.value.node_name
            elif isinstance(entry.value, Blockdev):
                for path, options in _all(entry.value, entry.path):
                    if _is_alias(options):
                        continue
                    for key in options.children:
                        if (child := options.child(key)) is not None:
                            yield key == options.takes, f"{path}.{key}", entry.name, child

    def _base(self, child: Child) -> str | None:
        """The table whose backend a child has; None: it is defined within its only user."""
        base: str | None = None
        seen: set[str] = set()
        while True:
            options: Any = child
            if isinstance(child, str):
                if child not in self._nodes or child in seen:
                    return base
                seen.add(child)
                base = child
                options = self._nodes[child].value
            if not _is_alias(options):
                return base
            child = options.file

    def _exports(self) -> Wrong:
        for entry in self._of("nbd-server"):
            if isinstance(entry.value, NbdServerOptions):
                yield from self._objects(entry.path, entry.value)
        devices: dict[tuple[str, str], str] = {}
        for entry in self._of("export"):
            name = entry.raw.get("node-name")
            if isinstance(name, str) and name not in self._nodes:
                yield (
                    f"{entry.path}.node-name",
                    f"there is no node '{name}'" + did_you_mean(name, self._nodes),
                )
            if entry.raw.get("type") == "nbd" and not self._of("nbd-server"):
                yield f"{entry.path}.type", "NBD server not running: [nbd-server] is missing"
            options = entry.value
            if not isinstance(options, ExportOptions):
                continue
            node = self._nodes.get(options.node_name)
            if options.writable and node is not None and node.raw.get("read-only") is True:
                yield f"{entry.path}.writable", "Cannot export read-only node as writable"
            for taken in _names_taken(options):
                if taken in devices:
                    kind, called = taken
                    yield entry.path, f"{kind} '{called}' is export '{devices[taken]}' already"
                devices.setdefault(taken, entry.name)

    def _monitors(self) -> Wrong:
        chardevs = {entry.name for entry in self._of("chardev")}
        users: dict[str, str] = {}
        for entry in self._of("monitor"):
            if not isinstance(entry.value, MonitorOptions):
                continue
            name = entry.value.chardev
            path = f"{entry.path}.chardev"
            if name not in chardevs:
                yield path, f"there is no chardev '{name}'{did_you_mean(name, chardevs)}"
            elif name in users:
                yield path, f"chardev '{name}' is monitor '{users[name]}'s already"
            users.setdefault(name, entry.name)

    def _sockets(self) -> Wrong:
        users: dict[str, str] = {}
        if self._metrics is not None:
            users[self._metrics.removeprefix("unix:")] = "metrics"
        for entry in self._entries:
            match entry.value:
                case ChardevOptions(path=str(path)):
                    where = "path"
                case ChardevOptions(fd=str(fd)):
                    path, where = f"fd {fd}", "fd"
                case NbdServerOptions(addr=addr) | VhostUserBlkOptions(addr=addr):
                    path, where = addr.place, "addr"
                case _:
                    continue
            if path in users:
                yield f"{entry.path}.{where}", f"socket '{path}' is that of {users[path]} already"
            users.setdefault(path, f"[{entry.path}]")


def _below(value: Any) -> list[str]:
    """Names of the nodes that it lies on."""
    if isinstance(value, ExportOptions):
        return [value.node_name]
    if not isinstance(value, Blockdev):
        return []
    given = [(options, key) for _, options in _all(value, "") for key in options.children]
    children = [options.child(key) for options, key in given]
    return [child for child in children if isinstance(child, str)]


def _is_alias(value: Any) -> TypeGuard[RawOptions]:
    """A node without a backend of its own."""
    return isinstance(value, RawOptions) and value.is_whole


def _all(options: Blockdev, path: str) -> Iterator[tuple[str, Blockdev]]:
    """The node and those defined within, with their paths."""
    yield path, options
    for key in options.children:
        child = options.child(key)
        if isinstance(child, Blockdev):
            yield from _all(child, f"{path}.{key}")


def _names_taken(options: ExportOptions) -> Iterator[tuple[str, str]]:
    """What no other export can be called."""
    if isinstance(options, NbdOptions):
        yield "NBD export", options.export_name
    elif isinstance(options, VduseBlkOptions):
        yield "VDUSE device", options.device_name
