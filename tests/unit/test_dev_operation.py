"""Operations that wait for a device's program, and programs that keep them waiting."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from vduse.daemon.dev import operation as module
from vduse.daemon.dev.errors import KernelRefused
from vduse.daemon.dev.operation import is_served, msg_timeout, perform, read, silence
from vduse.vdpa.users import Program


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/sys/class/vduse and /dev/vduse with disk0, whose msg_timeout is a moment."""
    (tmp_path / "disk0").mkdir()
    (tmp_path / "disk0/msg_timeout").write_text("0.001\n")
    monkeypatch.setattr(module, "CLASS", tmp_path)
    monkeypatch.setattr(module, "NODES", tmp_path)
    return tmp_path


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "programs", lambda _node: [Program(7, "vduse", stopped=True)])


def wait_a_moment() -> None:
    """Longer than disk0's msg_timeout."""
    threading.Event().wait(0.01)


def test_all_is_well(kernel: Path) -> None:
    (kernel / "disk0/msg_timeout").write_text("30\n")
    assert perform("del", "disk0", lambda: None) is None
    assert (msg_timeout("disk0"), msg_timeout("no-such")) == (30.0, 0.0)


def test_device_that_the_kernel_gave_up(stopped: None) -> None:
    assert perform("del", "disk0", wait_a_moment) == (
        "the kernel waited 0.001 s for disk0 (its msg_timeout) and has given it up for good: its "
        "program, vduse (pid 7), is stopped (kill -CONT 7); end it (kill -9 7), then vduse dev del "
        "disk0, and start it again"
    )


def test_error_and_its_cause(stopped: None) -> None:
    def fail() -> None:
        wait_a_moment()
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(KernelRefused) as refused:
        perform("bind", "disk0", fail)
    assert str(refused.value).startswith(
        "disk0: the driver did not take it; the kernel's log says why: dmesg; the kernel waited"
    )


def test_who_is_waited_for_is_said_soon(stopped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SOON", 0.0)
    said = threading.Event()

    def warn(text: str, *values: object) -> None:
        assert text % values == (
            "disk0: the kernel waits, at most 0.001 s: its program, vduse (pid 7), is stopped "
            "(kill -CONT 7)"
        )
        said.set()

    monkeypatch.setattr(module.log, "warning", warn)
    perform("del", "disk0", lambda: assert_set(said))


def assert_set(event: threading.Event) -> None:
    assert event.wait(60)


def test_operation_that_does_not_end(stopped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SOON", 0.0)
    monkeypatch.setattr(module, "_GRACE", 0.0)
    end = threading.Event()
    with pytest.raises(KernelRefused, match=r"has not ended this in 0\.001 s, and goes on: its"):
        perform("del", "disk0", lambda: assert_set(end))
    end.set()


def test_bus_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READ_TIMEOUT", 0.0)
    end = threading.Event()
    with pytest.raises(KernelRefused, match="the kernel's vDPA bus is busy"):
        read("show", "disk0", lambda: assert_set(end))
    end.set()


def test_read_gives_its_result_and_its_error() -> None:
    assert read("show", "disk0", lambda: 7) == 7

    def fail() -> None:
        raise OSError(errno.ENODEV, "No such device")

    with pytest.raises(KernelRefused, match="disk0: not on the vDPA bus"):
        read("show", "disk0", fail)


def test_programs_that_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert silence("disk0") == "no program serves disk0"
    monkeypatch.setattr(module, "programs", lambda _node: [Program(7, "vduse", stopped=False)])
    assert silence("disk0") == "its program, vduse (pid 7), does not answer"


def test_node_that_can_be_opened_is_not_served(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kernel / "disk1").touch()
    assert not is_served("disk1")
    assert not is_served("no-such")

    def busy(*_: object) -> int:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("os.open", busy)
    assert is_served("disk1")
