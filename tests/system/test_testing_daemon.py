"""The pytest plugin's fixtures for daemons, by pytest's own tester and a real daemon:
docs/testing-your-daemon.md is what they must do."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.rules.tree import ROOT
from vduse.check.rules import RULES

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.needs("qemu-storage-daemon")

PAGE = (ROOT / "docs/testing-your-daemon.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

QEMU = """
def start(vduse_daemon, size=1 << 20):
    return vduse_daemon(
        "qemu-storage-daemon",
        *("--blockdev", f"driver=null-co,size={size},node-name=disk"),
        *("--export", "type=vduse-blk,id=disk0,name=disk0,node-name=disk,writable=on"),
    )
"""


#: Rules that QEMU's daemon breaks, however fast its requests and this machine are
#: (docs/conformance-qemu.md; test_conformance_qemu.py looks at the others).
BROKEN = {
    *("status.features-unoffered", "status.unmapped-queue", "status.too-long-queue"),
    *("queue.late-enable", "state.unknown-queue", "chain.malformed"),
}


def test_the_pages_whole_example_passes(pytester: pytest.Pytester) -> None:
    whole, _ = EXAMPLES
    pytester.makepyfile(whole)
    result = pytester.runpytest("--strict-markers", "-Werror")
    assert result.ret == 0
    assert result.parseoutcomes().get("passed", 0) >= whole.count("def test_")


def test_every_rule_is_a_result_and_the_report_a_file(pytester: pytest.Pytester) -> None:
    """The page's example for conformance: nothing is broken but what is known, and that is."""
    _, conformance = EXAMPLES
    pytester.makepyfile(conformance)
    result = pytester.runpytest("--strict-markers", "-Werror", "--vduse-reports=reports")
    outcomes = result.parseoutcomes()
    assert result.ret == 0
    assert sum(outcomes.values()) == len(RULES)
    assert outcomes["passed"] > len(RULES) / 2
    suites = ElementTree.parse(pytester.path / "reports/qemu-storage-daemon-disk0.xml").getroot()
    failed = {
        case.get("name") for case in suites.iter("testcase") if case.find("failure") is not None
    }
    assert failed >= BROKEN
    assert outcomes["xfailed"] == len(failed)
    text = (pytester.path / "reports/qemu-storage-daemon-disk0.txt").read_text()
    assert "OK to FEATURES_OK with RING_PACKED, which is not offered" in text


def test_a_failing_test_is_told_about_its_daemon(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        QEMU
        + """
def test_fails(vduse_daemon):
    start(vduse_daemon).disk().pread(512, 0)
    assert False
"""
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    output = result.stdout.str()
    for part in (
        "vduse daemon qemu-storage-daemon",
        ": runs as process ",
        "device disk0: virtio_vdpa",
        "vduse control path",
    ):
        assert part in output, part


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("no-such-program",), "no-such-program: no such program on PATH"),
        (("/",), "/: is a folder: name a program"),
        (("false",), "false: ended with exit code 1 before a device was set up"),
        (
            ("qemu-storage-daemon", "--export", "bogus"),
            "qemu-storage-daemon: ended with exit code 1 before a device was set up",
        ),
    ],
)
def test_a_program_that_is_no_daemon(
    pytester: pytest.Pytester, argv: tuple[str, ...], says: str
) -> None:
    pytester.makepyfile(
        f"""
        def test_never_serves(vduse_daemon):
            vduse_daemon(*{argv!r}).disk()
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    assert f"ProgramError: {says}" in result.stdout.str()


def test_two_daemons_of_one_test(pytester: pytest.Pytester) -> None:
    """On one framework, as on one kernel: their devices have names of their own."""
    pytester.makepyfile(
        """
        def test_two(vduse_daemon, vduse_framework):
            for name in ("a", "b"):
                daemon = vduse_daemon(
                    "qemu-storage-daemon",
                    *("--blockdev", "driver=null-co,size=1048576,node-name=disk"),
                    *("--export", f"type=vduse-blk,id={name},name={name},node-name=disk"),
                )
                assert daemon.disk().name == daemon.device() == name
            assert vduse_framework.bus.devices == {"a": "virtio_vdpa", "b": "virtio_vdpa"}
        """
    )
    pytester.runpytest("-Werror").assert_outcomes(passed=1)


def test_one_device_under_both_bus_drivers_in_turns(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        QEMU
        + """
from vduse.testing.load import Spec, run_vhost_user

def test_turns(vduse_daemon):
    daemon = start(vduse_daemon)
    for _ in range(2):
        daemon.disk().pread(512, 0)
        assert daemon.driver().get_device_id() == 2
    daemon.disk()
    with daemon.vhost_user() as path:
        assert run_vhost_user(path, Spec(requests=100, depth=8)).errors == 0
"""
    )
    pytester.runpytest("-Werror").assert_outcomes(passed=1)
