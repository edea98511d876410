"""Values into msgspec models: QMP's arguments, and those of the command line, which are strings.

Mistakes name the parameter by its path, in QEMU's words, with the nearest known name."""

from __future__ import annotations

import enum
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import msgspec.structs

from vduse.control.spelling import did_you_mean
from vduse.daemon.qmp.errors import ArgumentError

_TYPE_NAMES: dict[Any, str] = {
    int: "integer",
    bool: "boolean",
    str: "string",
    tuple: "array",
    dict: "object",
}
_ON, _OFF = ("on", "yes", "true", "y"), ("off", "no", "false", "n")
_INTEGER = re.compile("-?(0|[1-9][0-9]{0,19}|0x[0-9a-fA-F]{1,16})")


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a parameter."""

    #: Keys with dots between them; empty: of the whole.
    path: str
    #: One line for a person.
    text: str


class Null(enum.Enum):
    """JSON's null, where it says something; None: nothing is said."""

    NULL = None


class Model(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The base of models of arguments and results. A field's name has dashes in QMP.

    A model that has a tag field and models under it stands for those under it, and is never made
    itself: see :func:`variants`. What each of those has to define is abstract in it, which the type
    checker holds them to."""

    def mistakes(self) -> Iterator[Mistake]:
        """What the types do not say; paths begin here."""
        return iter(())


def variants(model: Any) -> list[Any]:
    """The structs of a type: of a union, its members; of a tagged base, those derived from it."""
    found = []
    for option in get_args(model) if _is_union(model) else (model,):
        if not _is_struct(option):
            continue
        derived = option.__subclasses__() if option.__struct_config__.tag_field else []
        found += [struct for each in derived for struct in variants(each)] if derived else [option]
    return found


def convert(raw: Any, model: Any, *, strings: bool = False, path: str = "") -> Any:
    """``raw`` as ``model``: a struct, or one of its :func:`variants`. ``strings``: it comes from a
    command line, where every value is a string (QEMU's keyval). ``path``: of ``raw``, for errors.
    ArgumentError: the first mistake."""
    value, mistakes = read(raw, model, strings=strings, path=path)
    for mistake in mistakes:
        raise ArgumentError(mistake.text)
    return value


def read(
    raw: Any, model: Any, *, strings: bool = False, path: str = ""
) -> tuple[Any, list[Mistake]]:
    """As :func:`convert`, with all mistakes. The value is without what is wrong; None: there is
    none, for what has to be there is wrong."""
    reader = _Reader(strings)
    return reader.struct(raw, model, path), reader.mistakes


class _Reader:
    def __init__(self, strings: bool) -> None:
        self._strings = strings
        self.mistakes: list[Mistake] = []

    def struct(self, raw: Any, model: Any, path: str) -> Any:
        """As of :func:`read`."""
        if not isinstance(raw, Mapping):
            return self._wrong(path, f"Invalid parameter type for '{path}', expected: object")
        structs = variants(model)
        struct = self._choose(raw, structs, path)
        if struct is None:
            return None
        fields = _fields(struct)
        tag = struct.__struct_config__.tag_field
        known = [*fields, tag] if tag else list(fields)
        for key in raw:
            if key not in known:
                where = _join(path, key)
                hint = _for_others(key, structs, path)
                hint = hint or did_you_mean(where, [_join(path, name) for name in known])
                self._wrong(where, f"Parameter '{where}' is unexpected{hint}")
        before = len(self.mistakes)
        values = {}
        for key, field in fields.items():
            where = _join(path, key)
            if key not in raw:
                if field.required:
                    self._wrong(where, f"Parameter '{where}' is missing")
            elif (value := self._value(raw[key], field.type, where)) is not None:
                values[field.name] = value
        if any(field.required and field.name not in values for field in fields.values()):
            return None
        whole = struct(**values)
        # What is wrong in itself is not told to be wrong with the rest.
        if len(self.mistakes) == before:
            for mistake in whole.mistakes():
                self._wrong(_join(path, mistake.path), mistake.text)
        return whole

    def _wrong(self, path: str, text: str) -> None:
        self.mistakes.append(Mistake(path, text))

    def _choose(self, raw: Mapping[str, Any], structs: list[Any], path: str) -> Any:
        """The struct that the tag names, where there are several; None: none."""
        tag = structs[0].__struct_config__.tag_field
        if tag is None:
            return structs[0]
        where = _join(path, tag)
        if tag not in raw:
            return self._wrong(where, f"Parameter '{where}' is missing")
        by_tag = {struct.__struct_config__.tag: struct for struct in structs}
        name = self._one_of(raw[tag], tuple(by_tag), where)
        return None if name is None else by_tag[name]

    def _value(self, raw: Any, model: Any, path: str) -> Any:
        if variants(model) and isinstance(raw, Mapping):
            return self.struct(raw, model, path)
        options = get_args(model) if _is_union(model) else (model,)
        if raw is None and Null in options:
            return Null.NULL
        plain = [o for o in options if not _is_struct(o) and o not in (type(None), Null)]
        if not plain:
            return self._wrong(path, f"Invalid parameter type for '{path}', expected: object")
        (model,) = plain
        if get_origin(model) is Literal:
            return self._one_of(raw, get_args(model), path)
        # Annotated[int, Meta(...)] is an int, tuple[str, ...] a tuple.
        bare = get_args(model)[0] if hasattr(model, "__metadata__") else model
        bare = get_origin(bare) or bare
        if bare is tuple and self._strings and isinstance(raw, Mapping):
            raw = _listed(raw)
        if bare is tuple and isinstance(raw, list | tuple) and variants(get_args(model)[0]):
            return tuple(
                self.struct(each, get_args(model)[0], _join(path, str(number)))
                for number, each in enumerate(raw)
            )
        try:
            if self._strings and isinstance(raw, str):
                raw = _from_string(raw, bare, path)
            return msgspec.convert(raw, model)
        except ArgumentError as error:
            return self._wrong(path, str(error))
        except msgspec.ValidationError as error:
            if isinstance(raw, bare) and not (bare is int and isinstance(raw, bool)):
                return self._wrong(path, f"Parameter '{path}': {error}")
            name = _TYPE_NAMES[bare]
            return self._wrong(path, f"Invalid parameter type for '{path}', expected: {name}")

    def _one_of(self, raw: Any, known: tuple[str, ...], path: str) -> str | None:
        if not isinstance(raw, str):
            self._wrong(path, f"Invalid parameter type for '{path}', expected: string")
            return None
        if raw not in known:
            hint = did_you_mean(raw, known) or f": it is one of {', '.join(known)}"
            self._wrong(path, f"Parameter '{path}' does not accept value '{raw}'{hint}")
            return None
        return raw


def _for_others(key: str, structs: list[Any], path: str) -> str:
    """``: it is for TAG=VALUE`` of the variants that have the key; empty: none has."""
    with_key = [each for each in structs if key in _fields(each)]
    tags = sorted(str(each.__struct_config__.tag) for each in with_key)
    tag = _join(path, structs[0].__struct_config__.tag_field or "")
    return f": it is for {tag}={', '.join(tags)}" if tags else ""


def _fields(struct: Any) -> dict[str, Any]:
    """By their names in QMP."""
    return {field.encode_name: field for field in msgspec.structs.fields(struct)}


def _is_union(model: Any) -> bool:
    return get_origin(model) in (Union, types.UnionType)


def _is_struct(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, msgspec.Struct)


def _listed(raw: Mapping[str, Any]) -> Any:
    """What a command line's keys number from 0 (``server.0.host``) as a list."""
    numbers = [str(number) for number in range(len(raw))]
    return [raw[number] for number in numbers] if raw.keys() == set(numbers) else raw


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


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key
