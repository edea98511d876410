"""The bed itself: what a command in a guest can do, and what it cannot."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest

from tests.kernel.fetch import Kernel, kernel
from tests.kernel.skips import skips_without_bed
from tests.kernel.vm import VM, Stopped, programs

# The first of all fetches the kernel.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def newest() -> Kernel:
    """A kernel to boot."""
    with skips_without_bed():
        programs()
        return kernel("7.2")


def test_command_sees_this_machines_files_and_cannot_change_them(
    newest: Kernel, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("from here\n")
    output = BytesIO()
    # More output than any buffer holds, before the exit status. What the command leaves running
    # keeps its output open, and must not keep the guest.
    command = "cat file; echo changed >file; cat file >&2; seq 100000; sleep 1000 & exit 7"
    with VM(newest, command, output=output, folder=tmp_path) as vm:
        assert vm.wait(300) == 7
        assert vm.boot_time is not None
    first, second, *numbers = output.getvalue().splitlines()
    assert (first, second) == (b"from here", b"changed")
    assert numbers == [b"%d" % n for n in range(1, 100001)]
    assert file.read_text() == "from here\n"
    assert not vm.run.exists()


def test_panic_is_shown(newest: Kernel) -> None:
    with VM(newest, "echo c >/proc/sysrq-trigger") as vm:
        with pytest.raises(Stopped, match="the guest ended early; its console:") as stopped:
            vm.wait(300)
        assert "Kernel panic - not syncing: sysrq triggered crash" in str(stopped.value)


def test_guest_that_does_not_end_is_ended(newest: Kernel) -> None:
    with VM(newest, "echo ready >&3; sleep 1000") as vm:
        assert next(vm.lines(300)) == "ready"
        with pytest.raises(Stopped, match="the guest was out of time and was ended"):
            vm.wait(0)
