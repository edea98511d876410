"""``python:MODULE:CLASS,key=value``: what it makes, and what it says about mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend

MODULE = """
from vduse.backends.python import PythonBackend

SEEN = []

class Blank(PythonBackend):
    def read(self, offset, buffer):
        buffer[:] = bytes(len(buffer))

class Disk(Blank):
    def __init__(self, size, name: str = "", fast=False, count=0):
        SEEN.append((size, name, fast, count))
        self.size = size
        self.read_only = False

class Fixed(Blank):
    size = 4096

class ReadOnly(Blank):
    size = 4096
    def __init__(self, read_only=False):
        self.read_only = read_only

class Wrong(Blank):
    size = 100

class Raising(Blank):
    def __init__(self):
        raise KeyError("what")

class Sized(Blank):
    def __init__(self, size, block_size=512):
        self.size = size
        self.block_size = block_size

class Leaving(Blank):
    def __init__(self):
        raise SystemExit(7)

class TwoLines(Blank):
    def __init__(self):
        raise ValueError("one\\n  two")

class Unsaid(Blank):
    @property
    def size(self):
        raise LookupError("where")

class Other:
    pass
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spec_disks.py").write_text(MODULE)
    (tmp_path / "spec_broken.py").write_text("def f(:\n")
    (tmp_path / "spec_leaving.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "spec_needs.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("spec_disks", "spec_broken", "spec_leaving", "spec_needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_pairs_and_the_size_become_arguments() -> None:
    backend = open_backend("python:spec_disks:Disk,name=007,fast=on,count=12", size=8192)
    assert sys.modules["spec_disks"].SEEN == [(8192, "007", True, 12)]
    assert (backend.size, backend.engine) == (8192, "python")
    backend.close()


def test_disk_of_its_own_size_needs_none() -> None:
    backend = open_backend("python:spec_disks:Fixed")
    assert backend.size == 4096
    backend.close()


def test_read_only_goes_to_a_class_that_takes_it() -> None:
    backend = open_backend("python:spec_disks:ReadOnly", read_only=True)
    assert backend.read_only
    backend.close()
    backend = open_backend("python:spec_disks:Fixed", read_only=True)
    assert not backend.read_only
    backend.close()


MISTAKES = [
    ("python:", "write python:MODULE:CLASS,key=value"),
    ("python:spec_disks", "write python:MODULE:CLASS,key=value"),
    (
        "python:no_such:Disk",
        "no module no_such here or on Python's path; name a file of this directory without .py",
    ),
    (
        "python:spec_disks.sub:Disk",
        "no module spec_disks.sub here or on Python's path; "
        "name a file of this directory without .py",
    ),
    (
        "python:spec_needs:Disk",
        "importing spec_needs raised ModuleNotFoundError: No module named 'no_such_thing' "
        "(spec_needs.py, line 1)",
    ),
    (
        "python:spec_broken:Disk",
        "importing spec_broken raised SyntaxError: invalid syntax (spec_broken.py, line 1)",
    ),
    (
        "python:spec_disks:No",
        "no No in module spec_disks; there is "
        "Blank, Disk, Fixed, Leaving, Raising, ReadOnly, Sized, TwoLines, Unsaid, Wrong",
    ),
    (
        "python:spec_disks:Other",
        "Other is no subclass of vduse.backends.python.PythonBackend",
    ),
    ("python:spec_disks:Disk", "needs a size"),
    (
        "python:spec_disks:Fixed,x=1",
        "got an unexpected keyword argument 'x'; it takes no arguments",
    ),
    ("python:spec_disks:Fixed,x", "'x' is not key=value"),
    ("python:spec_disks:Disk,size=1,size=2", "size is given twice"),
    (
        "python:spec_disks:Raising",
        "Raising raised KeyError: 'what' (spec_disks.py, line 29)",
    ),
    (
        "python:spec_disks:Wrong",
        "a disk of 100 bytes: the size must be a multiple of 512 and not 0",
    ),
    ("python:spec_disks:Sized,size=-512", "size: -512 bytes are out of range"),
    ("python:spec_disks:Sized,size=1x", "size: '1x' is not a whole number"),
    (
        "python:spec_disks:Sized,size=9223372036854775808",
        "a disk of 9223372036854775808 bytes: 2^63 - 512 are the most",
    ),
    (
        "python:spec_disks:Sized,size=18446744073709551616",
        "size: 18446744073709551616 bytes are out of range",
    ),
    (
        "python:spec_disks:Sized,size=512,block_size=4096",
        "size: 512 bytes are less than a block, 4096",
    ),
    ("python:spec_disks:Leaving", "Leaving raised SystemExit: 7 (spec_disks.py, line 38)"),
    ("python:spec_disks:TwoLines", "TwoLines raised ValueError: one two (spec_disks.py, line 42)"),
    ("python:spec_disks:Unsaid", "Unsaid raised LookupError: where (spec_disks.py, line 47)"),
    (
        "python:spec_leaving:Disk",
        "importing spec_leaving raised SystemExit: 3 (spec_leaving.py, line 1)",
    ),
    ("python:.spec_disks:Disk", "write python:MODULE:CLASS,key=value"),
]


@pytest.mark.parametrize(("spec", "words"), MISTAKES, ids=[spec for spec, _ in MISTAKES])
def test_mistake_is_one_line(spec: str, words: str) -> None:
    with pytest.raises(BackendError) as caught:
        open_backend(spec)
    assert str(caught.value) == f"{spec}: {words}"


def test_size_for_a_disk_that_takes_none() -> None:
    with pytest.raises(BackendError, match="unexpected keyword argument 'size'"):
        open_backend("python:spec_disks:Fixed", size=512)
    with pytest.raises(BackendError, match="the size is given twice"):
        open_backend("python:spec_disks:Disk,size=512", size=512)
    with pytest.raises(BackendError, match="direct is for files"):
        open_backend("python:spec_disks:Fixed", direct=True)
