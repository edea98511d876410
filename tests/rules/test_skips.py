"""A test that lacks its means is skipped with the reason and the command that provides it; in CI
that is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import means
from tests.rules.tree import ROOT

LACKING = """
import pytest

@pytest.mark.needs("qemu-img")
def test_lacks_its_means():
    pass
"""
SKIPPED_MODULE = "import pytest\npytest.skip('not here', allow_module_level=True)\n"


def run_pytest(folder: Path, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(body)
    (folder / "bin").mkdir()
    options = ["-c", os.devnull, "--rootdir", folder, "-rsf", "-p", "tests.conftest"]
    quiet = ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *quiet, folder],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if k != "CI"},
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        text=True,
    )


@pytest.fixture
def no_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.mark.usefixtures("no_qemu")
def test_skip_names_the_command_that_provides_the_means(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, LACKING)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs qemu-img: make system-deps" in done.stdout
    assert "1 skipped" in done.stdout


@pytest.mark.usefixtures("no_qemu")
def test_skipped_test_fails_in_ci(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, LACKING, CI="true")
    assert done.returncode == 1
    assert "nothing may be skipped in CI" in done.stdout


def test_skipped_module_fails_in_ci(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIPPED_MODULE, CI="true")
    assert done.returncode != 0
    assert "nothing may be skipped in CI" in done.stdout


def test_unknown_means_is_an_error() -> None:
    with pytest.raises(KeyError):
        means.missing(("no-such-means",))
