"""The programs of examples/, as a reader would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_rng_prints_16_bytes() -> None:
    assert len(bytes.fromhex(run("rng.py").strip())) == 16


def test_ram_disk_reads_what_was_written() -> None:
    assert run("ram_disk.py") == "hello\n"


def test_ram_disk_takes_20_lines() -> None:
    program = (EXAMPLES / "ram_disk.py").read_text().split("\n\n\nif __name__")[0]
    assert len([line for line in program.splitlines() if line]) <= 20


def test_made_up_disk_knows_where_it_is() -> None:
    assert run("made_up.py") == "(549755813888, 549755813896)\n"


def test_file_object_keeps_what_was_written() -> None:
    assert run("file_object.py") == "kept\n"


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_has_a_test(example: str) -> None:
    assert f'run("{example}")' in Path(__file__).read_text()
