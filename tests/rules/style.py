"""Length, words, docstrings, unsafe, changelog, and the native module against its stub."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path
from types import ModuleType

from tests.rules.tree import files, text

MAX_LINES = 600
#: An extension module has one stub: parts of it would be modules that are not there to import,
#: which stubtest refuses.
_MAY_BE_LONG = {"python/vduse/_native.pyi"}

# Written so that this file does not name what it forbids.
_FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.}])/(?:work|root|farm|home/\w+|tmp/wt)/"),
    "a package host": re.compile(r"https?://[a-z0-9.-]*(?:debian|pypi|pythonhosted|crates)\b"),
    "unfinished": re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b"),
}
_GENERATED = {"Cargo.lock"}
#: Files of rust/py that may hold unsafe code: Python's thread states and buffers, and its fds that
#: are numbers.
_UNSAFE_IN_BINDING = {"attachment.rs", "buffer.rs", "exporter.rs", "fd.rs", "lender.rs"}
_UNSAFE = re.compile(r"\bunsafe\s*(?:\{|fn\b|impl\b|extern\b)")


def long_files(root: Path) -> list[str]:
    """Source files longer than one reader can hold."""
    return [
        f"{path.relative_to(root)}: {lines} lines"
        for path in files(root, ".py", ".pyi", ".rs")
        if str(path.relative_to(root)) not in _MAY_BE_LONG
        and (lines := len(path.read_text().splitlines())) > MAX_LINES
    ]


def forbidden_words(root: Path) -> list[str]:
    """Paths of one machine, package hosts and notes of unfinished work."""
    found = []
    for path in files(root):
        if path.name in _GENERATED or (body := text(path)) is None:
            continue
        for number, line in enumerate(body.splitlines(), 1):
            found += [
                f"{path.relative_to(root)}:{number}: {what}"
                for what, pattern in _FORBIDDEN.items()
                if pattern.search(line)
            ]
    return found


def unsafe_in_binding(root: Path) -> list[str]:
    """Unsafe code in rust/py outside the one file for it."""
    return [
        f"{path.relative_to(root)}:{number}"
        for path in files(root, ".rs", under="rust/py")
        if path.name not in _UNSAFE_IN_BINDING
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if _UNSAFE.search(line.split("//")[0])
    ]


def changelog_faults(root: Path) -> list[str]:
    """CHANGELOG.md has a section for what comes next or for the version at hand."""
    changelog = (root / "CHANGELOG.md").read_text()
    version = re.search(r'^version = "([^"]+)"', (root / "Cargo.toml").read_text(), re.MULTILINE)
    assert version is not None
    if re.search(rf"^## \[(Unreleased|{re.escape(version[1])})\]", changelog, re.MULTILINE):
        return []
    return [f"CHANGELOG.md: neither [Unreleased] nor [{version[1]}]"]


def undocumented(root: Path) -> list[str]:
    """Public Python modules, classes, functions and methods without a docstring.

    A method of a name that some class documents, or a protocol declares, needs no second one:
    ``pack``, ``close``, ``read_messages`` mean the same everywhere. Nor does one of Python's
    own file interface.
    """
    modules = {
        path: ast.parse(path.read_text(), str(path))
        for path in files(root, ".py", ".pyi", under="python/vduse")
    }
    known = {name for module in modules.values() for name in _documented_methods(module)}
    known |= set(dir(io.RawIOBase))
    found = []
    for path, module in modules.items():
        where = path.relative_to(root)
        empty = path.name == "__init__.py" and not module.body
        if not empty and not path.stem.startswith("_") and not ast.get_docstring(module):
            found.append(f"{where}: the module")
        for node in module.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found += [f"{where}:{line}: {name}" for line, name in _bare(node, known)]
    return found


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]


def _documented_methods(module: ast.Module) -> set[str]:
    return {
        method.name
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
        for method in _methods(node)
        if ast.get_docstring(method) or _declaration(method)
    }


def _bare(
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, known: set[str]
) -> list[tuple[int, str]]:
    if node.name.startswith("_"):
        return []
    found = [] if ast.get_docstring(node) else [(node.lineno, node.name)]
    if isinstance(node, ast.ClassDef):
        found += [
            (method.lineno, f"{node.name}.{method.name}")
            for method in _methods(node)
            if not method.name.startswith("_") and method.name not in known
        ]
    return found


def _declaration(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = method.body[0]
    return isinstance(body, ast.Expr) and getattr(body.value, "value", None) is Ellipsis


def missing_natives(root: Path, native: ModuleType) -> list[str]:
    """Names that the stub promises and the native module does not have."""
    stub = ast.parse((root / "python/vduse/_native.pyi").read_text())
    missing = []
    for node in stub.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        if not hasattr(native, node.name):
            missing.append(node.name)
        elif isinstance(node, ast.ClassDef):
            missing += [
                f"{node.name}.{member.name}"
                for member in node.body
                if isinstance(member, ast.FunctionDef)
                and not hasattr(getattr(native, node.name), member.name)
            ]
    return missing
