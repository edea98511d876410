"""The ``machine`` mark: another guest for tests that need one. These run in it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.kernel("7.2"),
    pytest.mark.machine(cpus=4, memory=1024, options="maxcpus=3"),
]


def test_cpus_and_the_kernels_command_line_are_as_asked() -> None:
    assert "maxcpus=3" in Path("/proc/cmdline").read_text().split()
    cpus = Path("/sys/devices/system/cpu")
    assert (cpus / "online").read_text() == "0-2\n"
    assert (cpus / "present").read_text() == "0-3\n"


def test_memory_is_as_asked() -> None:
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    assert 700 << 10 < kib < 1024 << 10
