"""The command line's spelling of a disk written in Python: ``python:MODULE:CLASS,key=value``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from types import ModuleType
from typing import Any

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.python import PythonBackend

_FORM = "python:MODULE:CLASS,key=value"
#: What code of the module may raise. Not KeyboardInterrupt, and no end by a signal.
_RAISED = (Exception, SystemExit)
_WORDS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


def open_python(spec: str, *, size: int | None, read_only: bool) -> _native.Backend:
    """Makes a disk of the class that ``spec`` names and hands it over.

    MODULE is looked up as ``python -m`` does, in the current directory first. The pairs become
    keyword arguments: whole numbers as int, on and off (true, false, yes, no) as bool, unless the
    argument is annotated ``str``; all else as str. ``size`` is passed as ``size`` where it is
    given, ``read_only`` where the class takes it. BackendError: one line; where code of the
    module raised, its last line and where that is.
    """
    name, _, pairs = spec.removeprefix("python:").partition(",")
    module_name, colon, class_name = name.partition(":")
    if not (module_name and colon and class_name) or module_name.startswith("."):
        raise BackendError(f"{spec}: write {_FORM}")
    kind = _find(spec, _import(spec, module_name), class_name)
    signature = inspect.signature(kind)
    arguments = _arguments(spec, pairs, signature)
    if size is not None:
        if "size" in arguments:
            raise BackendError(f"{spec}: the size is given twice")
        arguments["size"] = size
    if read_only and "read_only" in signature.parameters:
        arguments.setdefault("read_only", True)
    _check(spec, signature, arguments)
    try:
        disk = kind(**arguments)
    except _RAISED as error:
        raise BackendError(f"{spec}: {class_name} raised {_where(error)}") from error
    if not isinstance(disk, PythonBackend):
        raise BackendError(f"{spec}: {_not_a_backend(class_name)}")
    try:
        return disk.native
    except (OSError, ValueError, TypeError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise BackendError(f"{spec}: {words}") from error
    except _RAISED as error:
        raise BackendError(f"{spec}: {class_name} raised {_where(error)}") from error


def _import(spec: str, name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise BackendError(
                f"{spec}: no module {name} here or on Python's path; "
                "name a file of this directory without .py"
            ) from None
        raise BackendError(f"{spec}: importing {name} raised {_where(error)}") from error
    except _RAISED as error:
        raise BackendError(f"{spec}: importing {name} raised {_where(error)}") from error


def _find(spec: str, module: ModuleType, name: str) -> type[PythonBackend]:
    kind = getattr(module, name, None)
    if kind is None:
        there = sorted(
            key
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, PythonBackend)
            and value is not PythonBackend
        )
        hint = f"there is {', '.join(there)}" if there else "it has no subclass of PythonBackend"
        raise BackendError(f"{spec}: no {name} in module {module.__name__}; {hint}")
    if not (isinstance(kind, type) and issubclass(kind, PythonBackend)):
        raise BackendError(f"{spec}: {_not_a_backend(name)}")
    return kind


def _not_a_backend(name: str) -> str:
    return f"{name} is no subclass of vduse.backends.python.PythonBackend"


def _arguments(spec: str, pairs: str, signature: inspect.Signature) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in filter(None, pairs.split(",")):
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals):
            raise BackendError(f"{spec}: {pair!r} is not key=value")
        if key in found:
            raise BackendError(f"{spec}: {key} is given twice")
        parameter = signature.parameters.get(key)
        is_text = parameter is not None and parameter.annotation in (str, "str")
        found[key] = value if is_text else _value(value)
    return found


def _value(text: str) -> int | bool | str:
    if text in _WORDS:
        return _WORDS[text]
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() else text


def _check(spec: str, signature: inspect.Signature, arguments: dict[str, Any]) -> None:
    try:
        signature.bind(**arguments)
    except TypeError as error:
        missing_size = "size" in signature.parameters and "size" not in arguments
        if missing_size and signature.parameters["size"].default is inspect.Parameter.empty:
            raise BackendError(f"{spec}: needs a size") from None
        takes = ", ".join(signature.parameters) or "no arguments"
        raise BackendError(f"{spec}: {error}; it takes {takes}") from None


def _where(error: BaseException) -> str:
    """The exception in one line, and where it was raised."""
    line = " ".join(traceback.format_exception_only(error)[-1].split())
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return line if not isinstance(error, SyntaxError) else f"{line} ({_place(error)})"
    return f"{line} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"


def _place(error: SyntaxError) -> str:
    return f"{os.path.basename(error.filename or '?')}, line {error.lineno}"
