"""The keys of the storage daemon's options, from their models."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import msgspec.structs

from vduse.daemon.qmp.arguments import variants
from vduse.daemon.storage.exports.export import ExportOptions
from vduse.daemon.storage.exports.nbd_server import NbdServerOptions
from vduse.daemon.storage.exports.types import TYPES
from vduse.daemon.storage.models import ChardevOptions, MonitorOptions
from vduse.daemon.storage.nodes.drivers import DRIVERS
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.objects.options import ObjectOptions
from vduse.daemon.storage.objects.types import TYPES as OBJECTS

assert DRIVERS and TYPES and OBJECTS  # the imports make the bases stand for all of them

#: Of the options that are made of keys.
MODELS: dict[str, Any] = {
    "object": ObjectOptions,
    "blockdev": Blockdev,
    "nbd-server": NbdServerOptions,
    "export": ExportOptions,
    "chardev": ChardevOptions,
    "monitor": MonitorOptions,
}
_NAMES = {int: "NUMBER", float: "NUMBER", str: "TEXT", bool: "on|off"}


@dataclass(frozen=True)
class Key:
    """A key and its value."""

    name: str
    #: What may stand there.
    value: str
    #: None: it has to be given; empty: there is none.
    default: str | None
    #: What else has to be said for it to be there.
    when: str = ""

    @property
    def note(self) -> str:
        """Its default, or that it has to be given."""
        found = "required" if self.default is None else self.default
        return f"{found} with {self.when}" if self.when else found


@dataclass(frozen=True)
class Keys:
    """Of an option, or of one of its types."""

    #: ``--blockdev driver=file``.
    title: str
    keys: tuple[Key, ...]


def tables() -> Iterator[Keys]:
    """In the order of the options; what is common to an option's types before each type's."""
    for option, model in MODELS.items():
        yield from _tables(f"--{option}", model)


def _tables(title: str, model: Any) -> Iterator[Keys]:
    structs, tag = _variants(model), model.__struct_config__.tag_field
    if structs == [model]:
        first = (Key(tag, model.__struct_config__.tag, None),) if tag else ()
        yield Keys(title, (*first, *_keys(model)))
        return
    common = tuple(_keys(model))
    names = "|".join(str(struct.__struct_config__.tag) for struct in structs)
    yield Keys(title, (Key(tag, names, None), *common))
    for struct in structs:
        own = tuple(key for key in _keys(struct) if key not in common)
        yield Keys(f"{title} {tag}={struct.__struct_config__.tag}", own)


def _keys(struct: Any, prefix: str = "", when: str = "") -> Iterator[Key]:
    for field in msgspec.structs.fields(struct):
        name = f"{prefix}{field.encode_name}"
        kind = _given(field.type)
        nested = _variants(kind)
        if not nested or issubclass(nested[0], Blockdev):
            yield Key(name, _value(kind), _default(field), when)
            continue
        tag = nested[0].__struct_config__.tag_field
        if tag is None:
            yield from _keys(nested[0], f"{name}.", when)
            continue
        tags = [str(each.__struct_config__.tag) for each in nested]
        yield Key(f"{name}.{tag}", "|".join(tags), _default(field), when)
        for each, value in zip(nested, tags, strict=True):
            yield from _keys(each, f"{name}.", f"{name}.{tag}={value}")


def _variants(kind: Any) -> list[Any]:
    """In an order that does not depend on who imported what first."""
    return sorted(variants(kind), key=lambda struct: str(struct.__struct_config__.tag))


def _given(kind: Any) -> Any:
    """Without None, which nobody can say."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    parts = [part for part in get_args(kind) if part is not type(None)]
    return functools.reduce(operator.or_, parts)


def _value(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) in (list, tuple):
        return f"list of {_value(get_args(kind)[0])}"
    if variants(kind):
        return "NODE"
    return _NAMES.get(kind, "TEXT")


def _default(field: Any) -> str | None:
    if field.required:
        return None
    value = field.default
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if isinstance(value, int | str) else ""
