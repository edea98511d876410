"""The house's rules hold here, and each is shown to fail on a tree that breaks it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.rules import style
from tests.rules.tree import ROOT
from vduse import _native


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_no_file_is_too_long() -> None:
    assert style.long_files(ROOT) == []


def test_no_forbidden_words() -> None:
    assert style.forbidden_words(ROOT) == []


def test_binding_has_no_unsafe_but_the_buffer_protocol() -> None:
    assert style.unsafe_in_binding(ROOT) == []


def test_changelog_names_this_version_or_the_next() -> None:
    assert style.changelog_faults(ROOT) == []


def test_every_public_name_is_documented() -> None:
    assert style.undocumented(ROOT) == []


def test_native_module_has_every_name_of_its_stub() -> None:
    assert style.missing_natives(ROOT, _native) == []


def test_long_file_is_found(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "x\n" * 601)
    write(tmp_path, "b.rs", "x\n" * 600)
    assert style.long_files(tmp_path) == ["a.py: 601 lines"]


@pytest.mark.parametrize(
    "line",
    [
        "see /" + "work/main",
        "/" + "root/.cargo",
        "https://deb." + "debian.org/",
        "TO" + "DO: later",
    ],
)
def test_forbidden_word_is_found(tmp_path: Path, line: str) -> None:
    write(tmp_path, "a.md", f"fine\n{line}\n")
    [found] = style.forbidden_words(tmp_path)
    assert found.startswith("a.md:2: ")


def test_binary_files_are_not_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe/" + b"root/")
    assert style.forbidden_words(tmp_path) == []


def test_unsafe_in_binding_is_found(tmp_path: Path) -> None:
    write(tmp_path, "rust/py/src/lib.rs", "// unsafe { }\nunsafe { f() }\nunsafe impl X for Y {}\n")
    write(tmp_path, "rust/py/src/buffer.rs", "unsafe { f() }\n")
    assert style.unsafe_in_binding(tmp_path) == ["rust/py/src/lib.rs:2", "rust/py/src/lib.rs:3"]


def test_missing_changelog_section_is_found(tmp_path: Path) -> None:
    write(tmp_path, "Cargo.toml", '[workspace.package]\nversion = "0.2.0"\n')
    write(tmp_path, "CHANGELOG.md", "## [0.1.0]\n")
    assert style.changelog_faults(tmp_path) == ["CHANGELOG.md: neither [Unreleased] nor [0.2.0]"]


def test_undocumented_name_is_found(tmp_path: Path) -> None:
    write(
        tmp_path,
        "python/vduse/a.py",
        "def f(): pass\n"
        "def _g(): pass\n"
        'class P(Protocol):\n    """Doc."""\n    def declared(self): ...\n'
        "class C:\n"
        '    """Doc."""\n'
        "    def m(self): return 1\n"
        '    def once(self):\n        """Doc."""\n'
        'class D:\n    """Doc."""\n'
        "    def once(self): return 1\n"
        "    def declared(self): return 1\n"
        "class E: pass\n",
    )
    write(tmp_path, "python/vduse/__init__.py", "")
    assert style.undocumented(tmp_path) == [
        "python/vduse/a.py: the module",
        "python/vduse/a.py:1: f",
        "python/vduse/a.py:8: C.m",
        "python/vduse/a.py:15: E",
    ]


def test_name_missing_in_native_module_is_found(tmp_path: Path) -> None:
    write(tmp_path, "python/vduse/_native.pyi", "class A:\n    def m(self): ...\ndef f(): ...\n")
    native = ModuleType("native")
    vars(native)["A"] = type("A", (), {})
    assert style.missing_natives(tmp_path, native) == ["A.m", "f"]
