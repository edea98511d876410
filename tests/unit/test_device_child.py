"""A device in a process of its own: how it starts and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vduse.framework.framework import Framework


@pytest.fixture
def framework() -> Iterator[Framework]:
    with Framework() as framework:
        yield framework


def start(framework: Framework, **arguments: object) -> subprocess.Popen[str]:
    """A child on a control socket of its own."""
    fd = framework.control()
    settings = {"control_fd": fd, "name": "disk0", "backend": "memory", "size": 1 << 20}
    child = subprocess.Popen(
        [sys.executable, "-m", "vduse.devices.child", json.dumps(settings | arguments)],
        pass_fds=[fd],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(fd)
    return child


def ready(child: subprocess.Popen[str]) -> str:
    """The child's first line."""
    assert child.stdout is not None
    return child.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_in_order_and_the_device_stays(
    framework: Framework, number: signal.Signals
) -> None:
    child = start(framework)
    assert ready(child) == "ready disk0\n"
    framework.dev_add("disk0", driver="virtio_vdpa")
    framework.disk("disk0").pwrite(bytes(4096), 0)
    child.send_signal(number)
    _, errors = child.communicate()
    assert (child.returncode, errors) == (0, "")
    assert list(framework.devices) == ["disk0"]
    second = start(framework)
    assert ready(second) == "ready disk0\n"
    framework.disk("disk0").pwrite(bytes(4096), 4096)
    framework.dev_del("disk0")
    second.terminate()
    second.communicate()
    assert second.returncode == 0


def test_framework_gone_ends_it_with_an_error() -> None:
    framework = Framework()
    child = start(framework)
    assert ready(child) == "ready disk0\n"
    framework.close()
    _, errors = child.communicate()
    assert child.returncode == 1
    assert "disk0: the framework is gone" in errors


def test_other_queues_than_the_device_has_are_refused(framework: Framework) -> None:
    child = start(framework)
    assert ready(child) == "ready disk0\n"
    child.kill()
    child.communicate()
    second = start(framework, queues=2)
    assert ready(second) == ""
    _, errors = second.communicate()
    assert second.returncode == 1
    assert "exists with other virtqueues" in errors
