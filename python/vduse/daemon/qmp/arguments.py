"""Values into msgspec models: QMP's arguments, and those of the command line, which are strings.

Errors name the parameter by its path, in QEMU's words, with the nearest known name."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import msgspec.structs

from vduse.control.spelling import did_you_mean
from vduse.daemon.qmp.errors import ArgumentError

_TYPE_NAMES: dict[Any, str] = {int: "integer", bool: "boolean", str: "string", tuple: "array"}
_ON, _OFF = ("on", "yes", "true", "y"), ("off", "no", "false", "n")
_INTEGER = re.compile("-?(0|[1-9][0-9]{0,19}|0x[0-9a-fA-F]{1,16})")


class Model(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The base of models of arguments and results. A field's name has dashes in QMP."""


def convert(raw: Any, model: Any, *, strings: bool = False, path: str = "") -> Any:
    """``raw`` as ``model``: a struct, or a union of tagged structs. ``strings``: it comes from a
    command line, where every value is a string (QEMU's keyval). ``path``: of ``raw``, for errors.
    ArgumentError."""
    if not isinstance(raw, Mapping):
        raise ArgumentError(f"Invalid parameter type for '{path}', expected: object")
    struct = _choose(raw, _structs(model), path)
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    tag = struct.__struct_config__.tag_field
    for key in raw:
        if key not in fields and key != tag:
            known = [*fields, tag] if tag else list(fields)
            where = _join(path, key)
            hint = did_you_mean(where, [_join(path, name) for name in known])
            raise ArgumentError(f"Parameter '{where}' is unexpected{hint}")
    values = {}
    for key, field in fields.items():
        if key in raw:
            values[field.name] = _value(raw[key], field.type, strings, _join(path, key))
        elif field.required:
            raise ArgumentError(f"Parameter '{_join(path, key)}' is missing")
    return struct(**values)


def _structs(model: Any) -> list[Any]:
    """The structs of a type, if any."""
    return [option for option in _options(model) if _is_struct(option)]


def _options(model: Any) -> tuple[Any, ...]:
    if get_origin(model) in (Union, types.UnionType):
        return get_args(model)
    return (model,)


def _is_struct(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, msgspec.Struct)


def _choose(raw: Mapping[str, Any], structs: list[Any], path: str) -> Any:
    """The struct that the tag names, where there are several."""
    tag = structs[0].__struct_config__.tag_field
    if tag is None:
        return structs[0]
    where = _join(path, tag)
    if tag not in raw:
        raise ArgumentError(f"Parameter '{where}' is missing")
    by_tag = {struct.__struct_config__.tag: struct for struct in structs}
    return by_tag[_one_of(raw[tag], tuple(by_tag), where)]


def _value(raw: Any, model: Any, strings: bool, path: str) -> Any:
    structs = _structs(model)
    if structs and isinstance(raw, Mapping):
        return convert(raw, model, strings=strings, path=path)
    plain = [o for o in _options(model) if not _is_struct(o) and o is not type(None)]
    if not plain:
        raise ArgumentError(f"Invalid parameter type for '{path}', expected: object")
    (model,) = plain
    if get_origin(model) is Literal:
        return _one_of(raw, get_args(model), path)
    # Annotated[int, Meta(...)] is an int, tuple[str, ...] a tuple.
    bare = get_args(model)[0] if hasattr(model, "__metadata__") else model
    bare = get_origin(bare) or bare
    if strings and isinstance(raw, str):
        raw = _from_string(raw, bare, path)
    try:
        return msgspec.convert(raw, model)
    except msgspec.ValidationError as error:
        if isinstance(raw, bare) and not (bare is int and isinstance(raw, bool)):
            raise ArgumentError(f"Parameter '{path}': {error}") from None
        name = _TYPE_NAMES[bare]
        raise ArgumentError(f"Invalid parameter type for '{path}', expected: {name}") from None


def _from_string(text: str, bare: Any, path: str) -> Any:
    if bare is bool:
        if text not in _ON + _OFF:
            raise ArgumentError(f"Parameter '{path}' expects 'on' or 'off'")
        return text in _ON
    if bare is int:
        if not _INTEGER.fullmatch(text):
            raise ArgumentError(f"Parameter '{path}' expects integer")
        return int(text, 0)
    return text


def _one_of(raw: Any, known: tuple[str, ...], path: str) -> str:
    if not isinstance(raw, str):
        raise ArgumentError(f"Invalid parameter type for '{path}', expected: string")
    if raw not in known:
        hint = did_you_mean(raw, known) or f": it is one of {', '.join(known)}"
        raise ArgumentError(f"Parameter '{path}' does not accept value '{raw}'{hint}")
    return raw


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
