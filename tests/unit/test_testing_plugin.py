"""The pytest plugin, by pytest's own tester: docs/testing-your-device.md is what it must do."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.rules.tree import ROOT
from vduse.testing import leaks

pytest_plugins = ["pytester"]

PAGE = (ROOT / "docs/testing-your-device.md").read_text()
OF_DAEMONS = (ROOT / "docs/testing-your-daemon.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_page_pass(pytester: pytest.Pytester, example: str) -> None:
    pytester.makepyfile(example)
    result = pytester.runpytest("--strict-markers", "-Werror")
    assert result.ret == 0
    assert result.parseoutcomes().get("passed", 0) >= example.count("def test_")


def test_every_fixture_is_on_a_page(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--fixtures")
    fixtures = set(re.findall(r"^(vduse_\w+)", result.stdout.str(), re.MULTILINE))
    assert fixtures == set(re.findall(r"^\| `(vduse_\w+)` \|", PAGE + OF_DAEMONS, re.MULTILINE))


def test_a_project_without_devices_imports_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_there():
            ours = {name for name in sys.modules if name.split(".")[0] == "vduse"}
            assert ours == {"vduse", "vduse.testing", "vduse.testing.plugin"}
        """
    )
    result = pytester.runpytest_subprocess("--strict-markers", "-Werror")
    result.assert_outcomes(passed=1)


def test_importing_the_plugin_imports_nothing_of_ours_beside() -> None:
    program = "import sys, vduse.testing.plugin; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ours = [name for name in done.stdout.split() if name.split(".")[0] == "vduse"]
    assert ours == ["vduse", "vduse.testing", "vduse.testing.plugin"]


def test_a_failing_test_is_told_about_its_devices(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_fails(vduse_device):
            stack = vduse_device("null", size=4096, name="vd7")
            stack.disk.pread(512, 0)
            assert False
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    output = result.stdout.str()
    for part in (
        "Captured log call",
        "vd7: on the vDPA bus",
        "vduse vd7",
        'device: {"',
        '"requests": 1,',
        "vduse control path",
        " vd7 <- #",
    ):
        assert part in output, part


def test_a_setup_that_fails_is_told_about_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vduse_disk("no-such-image")
        def test_never_runs(vduse_disk):
            pass
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    output = result.stdout.str()
    assert "BackendError" in output and "vduse control path" in output


def test_what_a_test_leaves_behind_fails_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "PATIENCE", 0.0)
    pytester.makepyfile(
        """
        import os, threading

        left = []
        end = threading.Event()

        def test_leaves_an_fd(vduse_disk):
            left.append(os.eventfd(0))

        def test_the_next_one_is_not_blamed(vduse_disk):
            os.close(left.pop())

        def test_leaves_a_thread(vduse_disk):
            threading.Thread(target=end.wait).start()

        def test_ends_it():
            end.set()

        def test_one_failure_is_told_once(vduse_disk):
            left.append(os.eventfd(0))
            assert not left

        def test_closes_it():
            os.close(left.pop())
        """
    )
    # Without the summary, which repeats whole messages where CI is set.
    result = pytester.runpytest("-rN")
    result.assert_outcomes(passed=5, failed=1, errors=2)
    output = result.stdout.str()
    assert output.count("fd: 1 more of anon_inode:[eventfd]") == 1
    assert output.count("thread: ") == 1


def test_a_device_that_died_ends_with_its_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_kills(vduse_device):
            vduse_device(size=1 << 20, where="child").kill_device()
            vduse_device(size=1 << 20, where="child")
            assert False
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)


def test_all_are_closed_though_one_cannot_be(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        seen = []

        def test_breaks_the_close(vduse_framework, vduse_device, monkeypatch):
            seen.append(vduse_framework)
            vduse_device()
            stack = vduse_device()
            def fail():
                raise OSError("cannot")
            stack.close_driver = fail

        def test_all_is_closed():
            assert seen[0].devices == {}
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=2, errors=1)
    assert "OSError: cannot" in result.stdout.str()


def test_a_class_in_place_of_a_disk(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from vduse.backends.python import PythonBackend

        def test_never_runs(vduse_device):
            vduse_device(PythonBackend)
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    assert "make a disk of it, PythonBackend()" in result.stdout.str()


def test_a_profile_that_is_none(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.vduse_profile("2.4")
        def test_never_runs(vduse_framework):
            pass
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    assert "ValueError" in result.stdout.str()
