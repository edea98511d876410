"""What is to be closed and opened so that nodes come to other options: those nodes, all that lies
on them, and what is defined within those. A table without I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec.structs

from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.nodes.family import (
    family_names,
    inner_name,
    named_children,
    with_owned,
)
from vduse.daemon.storage.nodes.node import Node
from vduse.daemon.storage.nodes.options import Blockdev


@dataclass(frozen=True)
class Plan:
    """Options are those of nodes that are not defined within others; later ones may lie on
    earlier ones."""

    #: The highest first.
    going: list[Node]
    #: As they were.
    former: list[Blockdev]
    coming: list[Blockdev]

    @property
    def going_names(self) -> list[str]:
        """Of all."""
        return [node.name for node in self.going]

    @property
    def coming_names(self) -> list[str]:
        """Of all, those defined within, too."""
        return list(_all_names(self.coming))

    @property
    def names(self) -> list[str]:
        """All of those, once."""
        return list(dict.fromkeys((*self.going_names, *self.coming_names)))

    @property
    def needed(self) -> set[str]:
        """What they will lie on, and stays as it is."""
        named = {name for options in self.coming for _, name in named_children(options)}
        return named - set(self.names)


def plan(nodes: Mapping[str, Node], given: Sequence[Blockdev]) -> Plan | None:
    """``nodes``: all there are, those of ``given`` among them. None: they are so already.
    QmpError."""
    changes: dict[str, Blockdev] = {}
    for options in given:
        name = options.node_name or ""
        if options.driver != nodes[name].driver:
            raise QmpError(f"Cannot change the option 'driver' of '{name}'")
        if name in changes:
            raise QmpError(f"Node '{name}' is given twice")
        changes[name] = options
    roots = _affected(nodes, changes)
    going = _highest_first(each for root in roots for each in with_owned(root))
    former = {root.name: root.options for root in roots}
    coming = {root.name: _changed(root, root.options, changes) for root in roots}
    for node in going:
        names = set(_all_names(coming.values()))
        if node.name not in names and _is_needed(node, nodes, coming.values()):
            # Nobody defines it any more, and somebody has it: a node by itself from now on.
            coming[node.name] = _changed(node, node.options, changes)
    for name in changes.keys() - set(_all_names(coming.values())):
        raise QmpError(f"Node '{name}' ends, by the options of the node that it is defined in")
    if coming == former:
        return None
    return Plan(going, _ordered(former, ()), _ordered(coming, changes))


def _affected(nodes: Mapping[str, Node], names: Iterable[str]) -> list[Node]:
    """The nodes that have these within, or lie on one that has; none that is within another."""
    owners = {owned.name: node for node in nodes.values() for owned in node.owned}
    found: dict[str, Node] = {}
    todo = [nodes[name] for name in names]
    while todo:
        root = todo.pop()
        while root.name in owners:
            root = owners[root.name]
        if root.name in found:
            continue
        found[root.name] = root
        users = (user for each in with_owned(root) for user in each.users)
        todo += [nodes[user] for user in users if user in nodes]
    return list(found.values())


def _highest_first(nodes: Iterable[Node]) -> list[Node]:
    todo = {node.name: node for node in nodes}
    lowest_first: dict[str, Node] = {}

    def visit(node: Node) -> None:
        if node.name in todo and node.name not in lowest_first:
            for child in node.children:
                visit(child)
            lowest_first[node.name] = node

    for node in todo.values():
        visit(node)
    return list(lowest_first.values())[::-1]


def _changed(node: Node, former: Blockdev, changes: Mapping[str, Blockdev]) -> Blockdev:
    """A node's options as they are to be: ``former``, or those given, with what is defined within.
    A node within that is named by its name stays there."""
    options = changes.get(node.name, former)
    within = {}
    for key in former.children:
        inner = former.child(key)
        if isinstance(inner, Blockdev):
            within[inner_name(node.name, inner)] = inner
    owned = {each.name: each for each in node.owned}
    found: dict[str, Blockdev] = {}
    for key in options.children:
        child = options.child(key)
        if isinstance(child, Blockdev) and options is former:
            child = inner_name(node.name, child)
        if isinstance(child, str) and child in within:
            found[key.replace("-", "_")] = _changed(owned[child], within[child], changes)
    return msgspec.structs.replace(options, **found) if found else options


def _is_needed(node: Node, nodes: Mapping[str, Node], coming: Iterable[Blockdev]) -> bool:
    named = {name for options in coming for _, name in named_children(options)}
    # Users that are no nodes are exports.
    return node.name in named or any(user not in nodes for user in node.users)


def _all_names(roots: Iterable[Blockdev]) -> Iterator[str]:
    for options in roots:
        yield from family_names(options)


def _ordered(roots: Mapping[str, Blockdev], given: Collection[str]) -> list[Blockdev]:
    """Those that others lie on come first. QmpError: there is no such order. ``given``: what is
    not as it was."""
    homes = {name: root for root, options in roots.items() for name in family_names(options)}
    found: dict[str, Blockdev] = {}
    on_way: list[str] = []

    def visit(root: str) -> None:
        if root in found:
            return
        on_way.append(root)
        for key, child in named_children(roots[root]):
            if (home := homes.get(child)) in on_way:
                text = f"Making '{child}' a {key} child of '{root}' would create a cycle"
                raise QmpError(text)
            if home is not None:
                visit(home)
        on_way.pop()
        found[root] = roots[root]

    # What is given comes last: its children are what makes a cycle.
    for root in sorted(roots, key=lambda root: root in given):
        visit(root)
    return list(found.values())
