"""The Makefile's front: what it lists, and its one line where something is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.rules.tree import ROOT


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_bare_make_lists_every_target() -> None:
    done = run("make")
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    listed = re.findall(r"^  make ([a-z-]+) +\S", done.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(phony[1].split())


def fake(folder: Path, name: str, body: str) -> None:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("python", "cargo", "line"),
    [
        (None, "", "error: python-x not found: install Python 3.11 or newer"),
        (
            'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac',
            "",
            "error: Python 3.9.2 is too old: Python 3.11 or newer is needed "
            "(make PYTHON=/path/to/python3.11)",
        ),
        ("exit 0", None, "error: cargo not found: install Rust (https://rustup.rs)"),
    ],
)
def test_missing_prerequisite_is_one_line(
    python: str | None, cargo: str | None, line: str, tmp_path: Path
) -> None:
    for tool in ("bash", "env", "uname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    if python is not None:
        fake(tmp_path, "python-x", python)
    if cargo is not None:
        fake(tmp_path, "cargo", cargo)
    done = run(str(ROOT / "tools/preflight"), PYTHON="python-x", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == line + "\n"
