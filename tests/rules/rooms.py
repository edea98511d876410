"""Who may import whom. The source is the table of rooms in ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.rules.tree import files

_ROW = re.compile(r"^\| `(python/vduse|rust)/(\w+)` \|[^|]*\| ([^|]+) \|$", re.MULTILINE)
#: The table's heading: every Python room may import these.
_ALWAYS = {"control", "_native"}


@dataclass(frozen=True)
class Rooms:
    """What each room may import: Python packages and Rust crates."""

    python: dict[str, set[str]]
    rust: dict[str, set[str]]


def read_rooms(root: Path) -> Rooms:
    """Parses the table; a value is a list of rooms, ``nothing of ours``, ``-``, ``all``,
    ``everything`` or ``everything but X``."""
    rows = _ROW.findall((root / "ARCHITECTURE.md").read_text())
    named: dict[str, dict[str, str]] = {"python/vduse": {}, "rust": {}}
    for side, room, value in rows:
        named[side][room] = value.strip()

    def allowed(side: dict[str, str], value: str) -> set[str]:
        if value in ("-", "nothing of ours"):
            return set()
        if value in ("all", "everything"):
            return set(side)
        if value.startswith("everything but "):
            return set(side) - {value.removeprefix("everything but ")}
        return set(value.split(", "))

    python = {r: allowed(named["python/vduse"], v) for r, v in named["python/vduse"].items()}
    rust = {r: allowed(named["rust"], v) for r, v in named["rust"].items()}
    return Rooms({r: v | _ALWAYS | {r} for r, v in python.items()}, rust)


def reach(allowed: dict[str, set[str]], room: str) -> set[str]:
    """Everything a room may import, directly or through others."""
    seen: set[str] = set()
    todo = [room]
    while todo:
        for other in allowed.get(todo.pop(), set()):
            if other not in seen:
                seen.add(other)
                todo.append(other)
    return seen


def _imported_rooms(path: Path, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and room of every import of ours in a file of ``package`` (["vduse", ...])."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        names: list[list[str]] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            # `from vduse import bus` names the room in the imported name.
            names = [[*module, alias.name] for alias in node.names] if len(module) < 2 else [module]
        for name in names:
            if name[0] == "vduse" and len(name) > 1 and not name[1].startswith("__"):
                yield node.lineno, name[1]


def python_violations(root: Path) -> list[str]:
    """Imports that the table does not allow, and rooms that it does not name."""
    rooms = read_rooms(root)
    found = []
    for path in files(root, ".py", under="python/vduse"):
        parts = path.relative_to(root / "python").parts[:-1]
        where = path.relative_to(root)
        room = parts[1] if len(parts) > 1 else None
        if room is not None and room not in rooms.python:
            found.append(f"{where}: room {room} is not in ARCHITECTURE.md")
            continue
        # What lies in no room (vduse/__init__.py) is imported by every room.
        allowed = _ALWAYS if room is None else rooms.python[room]
        for line, other in _imported_rooms(path, list(parts)):
            if other not in allowed:
                found.append(f"{where}:{line}: {room or 'vduse'} may not import {other}")
    return found


def rust_violations(root: Path) -> list[str]:
    """Crates whose Cargo.toml names one of ours that the table does not allow."""
    rooms = read_rooms(root)
    found = []
    for path in files(root, "Cargo.toml", under="rust"):
        crate = path.parent.name
        if crate not in rooms.rust:
            found.append(f"rust/{crate} is not in ARCHITECTURE.md")
            continue
        manifest = tomllib.loads(path.read_text())
        for table in ("dependencies", "dev-dependencies", "build-dependencies"):
            ours = {
                name.removeprefix("vduse-")
                for name in manifest.get(table, {})
                if name.startswith("vduse-")
            }
            found += [
                f"rust/{crate}/Cargo.toml: {crate} may not depend on {other}"
                for other in sorted(ours - rooms.rust[crate])
            ]
    return found
