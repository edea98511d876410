"""Tests in guests become results here: the whole way, with a child process in the guest's place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.rules.tree import ROOT

#: A conftest.py: "guests" are processes that run what a guest would, their fd 3 a pipe.
CONFTEST = """
import os, subprocess, sys
from tests.conftest import pytest_runtest_makereport
from tests.kernel.fetch import BedError
from tests.kernel.plugin import KernelTests, guest_command
from tests.kernel.vm import Stopped, Tripped

class Child:
    def __init__(self, boot, items):
        if boot.version == "missing":
            raise BedError("needs qemu: make system-deps")
        print("boot", boot.version, boot.machine.cpus, len(items), file=sys.stderr)
        self._read, write = os.pipe()
        self._child = subprocess.Popen(
            ["sh", "-c", f"exec 3>&{write}; {guest_command(items[0].config, items)}"],
            pass_fds=[write], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        os.close(write)
        self.lines = self._lines()

    def _lines(self):
        with open(self._read) as lines:
            yield from lines
        self._printed, _ = self._child.communicate()
        if self._child.returncode == 99:
            raise Stopped("the guest ended early")
        if self._child.returncode == 98:
            raise Tripped("the guest ended early by the emulation's fault")

    def ended(self):
        return f"pytest in the guest ended:\\n{self._printed}"

    def output(self):
        return self._printed

    def close(self):
        self._child.kill()
        self._child.wait()
        self._child.stdout.close()

def pytest_configure(config):
    if not config.pluginmanager.has_plugin("tests.kernel.reports"):
        config.pluginmanager.register(KernelTests(Child))
"""

INI = """
[pytest]
markers =
    kernel(version)
    machine(cpus)
    needs(means)
"""


def run(folder: Path, body: str, *options: str, **environment: str) -> str:
    """pytest's output, from tests in one file."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_it.py").write_text("import os\nimport pytest\n" + body)
    # -s: that the conftest's own lines are seen.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-s", "-rs", *options, str(folder)],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if k != "CI"},
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def results(output: str) -> list[tuple[str, str]]:
    """Name and result of each test, in the order of the run."""
    run, _, _ = output.partition("= FAILURES =")
    return re.findall(r"^test_it\.py::(\S+) (PASSED|FAILED|SKIPPED|XFAIL)", run, re.MULTILINE)


def test_every_kind_of_result_comes_with_what_it_said(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
pytestmark = pytest.mark.kernel("6.12")

def test_good(): assert os.environ.get("PYTEST_CURRENT_TEST")
def test_bad():
    print("said before")
    value = 3
    assert value == 4
@pytest.mark.parametrize("n", [1, 2])
def test_each(n): assert n
@pytest.mark.skip(reason="not on this kernel")
def test_skipped(): pass
@pytest.mark.xfail
def test_expected(): assert False
@pytest.fixture
def broken(): raise OSError("no such device")
def test_setup(broken): pass
""",
    )
    assert results(output) == [
        ("test_good", "PASSED"),
        ("test_bad", "FAILED"),
        ("test_each[1]", "PASSED"),
        ("test_each[2]", "PASSED"),
        ("test_skipped", "SKIPPED"),
        ("test_expected", "XFAIL"),
    ]
    assert output.count("boot 6.12 2 7") == 1
    assert re.search(r"assert value == 4\nE +assert 3 == 4", output)
    assert "OSError: no such device" in output
    assert "not on this kernel" in output
    assert "1 failed, 3 passed, 1 skipped, 1 xfailed, 1 error" in output


def test_one_boot_for_tests_that_ask_the_same_and_tests_here_first(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
@pytest.fixture(params=[pytest.param(v, marks=pytest.mark.kernel(v)) for v in ("6.12", "7.2")])
def kernel(request): return request.param

def test_a(kernel): pass
@pytest.mark.machine(cpus=4)
def test_b(kernel): pass
def test_c(kernel): pass
def test_here(): assert os.getppid() == int(os.environ["RUNNER"])
""",
        RUNNER=str(os.getpid()),
    )
    assert [name for name, _ in results(output)] == [
        *("test_here", "test_a[6.12]", "test_c[6.12]", "test_a[7.2]", "test_c[7.2]"),
        *("test_b[6.12]", "test_b[7.2]"),
    ]
    boots = re.findall(r"boot (\S+) (\d) (\d)", output)
    assert boots == [("6.12", "2", "2"), ("7.2", "2", "2"), ("6.12", "4", "1"), ("7.2", "4", "1")]
    assert "7 passed" in output


def test_dead_guest_fails_the_test_it_was_in_alone(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
pytestmark = pytest.mark.kernel("6.12")

def test_before(): pass
def test_deadly(): os._exit(99)
def test_after(): pass
""",
    )
    assert results(output) == [
        *(("test_before", "PASSED"), ("test_deadly", "FAILED"), ("test_after", "PASSED")),
    ]
    assert "the guest ended early" in output
    assert re.findall(r"boot 6.12 2 (\d)", output) == ["3", "1"]


def test_a_test_whose_guest_the_emulation_ends_runs_in_another(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
from pathlib import Path
pytestmark = pytest.mark.kernel("6.12")

def test_before(): pass
def test_twice():
    place = Path(__file__).with_name("place")
    if not place.exists():
        place.touch()
        os._exit(98)
def test_always(): os._exit(98)
@pytest.fixture
def deadly():
    yield
    os._exit(98)
def test_that_had_failed(deadly): assert False
def test_after(): pass
""",
        "-rp",
    )
    assert re.findall(r"^PASSED test_it\.py::(\S+)", output, re.MULTILINE) == [
        *("test_before", "test_twice", "test_after"),
    ]
    assert "test_twice: the emulation has ended its guest" in output
    assert "test_that_had_failed: the emulation" not in output
    # Of the last one its own failure, and that its guest ended.
    assert "3 failed, 3 passed" in output
    assert re.findall(r"boot 6.12 2 (\d)", output) == ["5", "4", "3", "3", "2", "1"]


def test_guest_that_cannot_collect_fails_every_test_and_says_why(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
if os.path.exists("/proc/self/fd/3") and "tests.kernel.reports" in __import__("sys").modules:
    raise RuntimeError("not here")
pytestmark = pytest.mark.kernel("6.12")

def test_one(): pass
def test_two(): pass
""",
    )
    assert results(output) == [("test_one", "FAILED"), ("test_two", "FAILED")]
    assert "RuntimeError: not here" in output
    assert output.count("boot 6.12") == 1


MISSING = "@pytest.mark.kernel('missing')\ndef test_it(): pass\n"


def test_incomplete_bed_is_a_skip_with_what_to_do(tmp_path: Path) -> None:
    output = run(tmp_path, MISSING)
    assert results(output) == [("test_it", "SKIPPED")]
    assert "needs qemu: make system-deps" in output


def test_incomplete_bed_is_a_failure_in_ci(tmp_path: Path) -> None:
    output = run(tmp_path, MISSING, CI="true")
    assert "nothing may be skipped in CI" in output
    assert "1 error" in output


def test_hanging_test_is_for_the_guest_to_time_out(tmp_path: Path) -> None:
    body = """
import time
@pytest.mark.kernel("6.12")
@pytest.mark.timeout(1)
def test_hangs(): time.sleep(60)
"""
    output = run(tmp_path, body)
    assert results(output) == [("test_hangs", "FAILED")]
    assert "Failed: Timeout (>1.0s) from pytest-timeout" in output
