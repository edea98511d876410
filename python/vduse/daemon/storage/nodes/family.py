"""Nodes that are defined within others: their names, and who has whom."""

from __future__ import annotations

from collections.abc import Iterator

from vduse.daemon.storage.nodes.node import Node
from vduse.daemon.storage.nodes.options import Blockdev


def inner_options(options: Blockdev) -> Iterator[Blockdev]:
    """Nodes that are defined within, one step down, with their names."""
    for key in options.children:
        given = options.child(key)
        if isinstance(given, Blockdev):
            yield given.named(inner_name(options.node_name, given))


def inner_name(outer: str | None, inner: Blockdev) -> str:
    """No name that is given begins so. One step down for each sign."""
    return inner.node_name or f"#{outer or ''}"


def family(options: Blockdev) -> list[Blockdev]:
    """Of all nodes that it defines, with their names, the lowest first."""
    return [*(each for inner in inner_options(options) for each in family(inner)), options]


def family_names(options: Blockdev) -> list[str]:
    """Of all nodes that it defines."""
    return [each.node_name or "" for each in family(options)]


def named_children(options: Blockdev) -> Iterator[tuple[str, str]]:
    """The nodes that it, or one that is defined within, lies on by name: the key, the name."""
    for each in family(options):
        for key in each.children:
            if isinstance(given := each.child(key), str):
                yield key, given


def with_owned(node: Node) -> list[Node]:
    """The node, and those within it; the highest first."""
    return [node, *(each for owned in node.owned for each in with_owned(owned))]
