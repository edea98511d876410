"""``query-qmp-schema``: a table of commands as QEMU's introspection shows it (SchemaInfo of
qapi/introspect.json). Types have their models' names; QEMU's are numbers, which clients do not
look at."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

import msgspec.structs

from vduse.daemon.qmp.arguments import Null, variants
from vduse.daemon.qmp.table import QmpCommand

_BUILTIN = {
    int: ("int", "int"),
    str: ("str", "string"),
    bool: ("bool", "boolean"),
    float: ("number", "number"),
    Any: ("any", "value"),
    Null: ("null", "null"),
}
_EMPTY = "empty"


def schema(commands: Iterable[QmpCommand], events: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Entries, commands and events first. What an event tells is not said: an object."""
    entities = _Entities()
    found = [
        {
            "name": command.name,
            "meta-type": "command",
            "arg-type": entities.object(command.arguments),
            "ret-type": entities.of(command.result) if command.result is not None else _EMPTY,
        }
        for command in commands
    ]
    found += [{"name": name, "meta-type": "event", "arg-type": _EMPTY} for name in events]
    return found + list(entities.found.values())


class _Entities:
    """The types that are met on the way."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {
            _EMPTY: {"name": _EMPTY, "meta-type": "object", "members": []}
        }

    def of(self, model: Any) -> str:
        """The name of a type's entry, which there is then."""
        if model in _BUILTIN:
            name, json_type = _BUILTIN[model]
            return self._add(name, {"meta-type": "builtin", "json-type": json_type})
        origin, parts = get_origin(model), get_args(model)
        if hasattr(model, "__metadata__"):
            return self.of(parts[0])
        if origin is Literal:
            members = [{"name": value} for value in parts]
            entry = {"meta-type": "enum", "members": members, "values": list(parts)}
            return self._add("|".join(parts), entry)
        if origin in (list, tuple):
            inner = self.of(parts[0])
            return self._add(f"[{inner}]", {"meta-type": "array", "element-type": inner})
        if origin in (Union, types.UnionType):
            given = [part for part in parts if part is not type(None)]
            if len(given) == 1:
                return self.of(given[0])
            members = [{"type": self.of(part)} for part in given]
            name = "/".join(member["type"] for member in members)
            return self._add(name, {"meta-type": "alternate", "members": members})
        if variants(model):
            return self.object(model)
        return self._add("any", {"meta-type": "builtin", "json-type": "value"})

    def object(self, model: Any) -> str:
        """The same of a model."""
        structs = variants(model)
        name = model.__name__
        if name in self.found:
            return str(name)
        tag = model.__struct_config__.tag_field
        entry: dict[str, Any] = {"name": name, "meta-type": "object", "members": []}
        self.found[name] = entry  # before its members, which may have it in them
        entry["members"] = self._members(model, {})
        if tag is not None:
            tags = tuple(struct.__struct_config__.tag for struct in structs)
            entry["members"].insert(0, {"name": tag, "type": self.of(Literal[tags])})
        if structs != [model]:
            entry["tag"] = tag
            common = {field.encode_name for field in msgspec.structs.fields(model)}
            entry["variants"] = [
                {"case": struct.__struct_config__.tag, "type": self._variant(struct, common)}
                for struct in structs
            ]
        return str(name)

    def _variant(self, struct: Any, common: Iterable[str]) -> str:
        name = struct.__name__
        entry: dict[str, Any] = {"meta-type": "object", "members": []}
        self._add(name, entry)
        self.found[name]["members"] = self._members(struct, common)
        return str(name)

    def _members(self, struct: Any, without: Iterable[str]) -> list[dict[str, Any]]:
        members = []
        for field in msgspec.structs.fields(struct):
            if field.encode_name not in without:
                member: dict[str, Any] = {"name": field.encode_name, "type": self.of(field.type)}
                if not field.required:
                    member["default"] = None
                members.append(member)
        return members

    def _add(self, name: str, entry: dict[str, Any]) -> str:
        self.found.setdefault(name, {"name": name, **entry})
        return name
