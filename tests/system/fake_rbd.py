"""Programs with the fake librbd of rust/rbd/tests/fake in place of the system's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "rust/rbd/tests/fake/librbd.rs"
NAMES = ("librados.so.2", "librbd.so.1")


def build(folder: Path) -> None:
    """Puts the fake into ``folder``, under the names that the system's loader looks for."""
    target = folder / "libfake_rbd.so"
    command = ["rustc", "--edition", "2024", "--crate-type", "cdylib", "-C", "opt-level=2"]
    subprocess.run([*command, "-o", target, SOURCE], check=True)
    for name in NAMES:
        (folder / name).symlink_to(target)


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python program whose librbd is in ``folder``."""
    env = os.environ | {"LD_LIBRARY_PATH": str(folder), "CEPH_CONF": os.devnull}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
