"""Devices served in Python, for tests: in this process, or in a child (``python -m`` this).

with rng_stack("child") as stack:
    stack.framework.driver("rng0", VirtioRng).read(16)
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from vduse import _native
from vduse.channel.embedded import inherited
from vduse.control.features import DeviceId
from vduse.device.serve import serve_until_signal
from vduse.devices.virtio import VirtioDevice
from vduse.framework import Framework
from vduse.framework.vdpa_device import VdpaDevice

Where = Literal["process", "child"]
NAME = "rng0"


def stream(length: int) -> bytes:
    """The first bytes of what :class:`StreamRng` gives out."""
    return hashlib.shake_128(b"stream").digest(length)


class StreamRng(VirtioDevice):
    """An entropy device whose bytes are known."""

    DEVICE_ID = DeviceId.RNG

    def __init__(self, name: str, *, packed: bool = False) -> None:
        super().__init__(name, packed=packed)
        self._bytes = stream(8 << 20)
        self._at = 0

    def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        for chain in batch:
            self._at += chain.write(self._bytes[self._at : self._at + chain.writable_length])
            chain.complete()


class HoldingRng(StreamRng):
    """Keeps every chain, and says so on standard output."""

    def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        self._held = [*batch]
        print("held", flush=True)


@dataclass
class RngStack:
    """A framework with one entropy device on the bus."""

    framework: Framework
    vdpa: VdpaDevice


@contextmanager
def rng_stack(
    where: Where, *, packed: bool = False, driver: str | None = "virtio_vdpa"
) -> Iterator[RngStack]:
    """A :class:`StreamRng` in this process or in a child, bound to ``driver``."""
    with (
        Framework(device_ids=[DeviceId.RNG]) as framework,
        served(StreamRng(NAME, packed=packed), framework)
        if where == "process"
        else served_by_child(framework, packed=packed),
    ):
        yield RngStack(framework, framework.dev_add(NAME, driver=driver))
        framework.dev_del(NAME)


@contextmanager
def served(device: VirtioDevice, framework: Framework) -> Iterator[None]:
    """A device in this process, started on ``framework``."""
    control = inherited(framework.control())
    try:
        device.start(control)
        yield
        device.close()
    finally:
        control.close()


@contextmanager
def served_by_child(
    framework: Framework, *, packed: bool, hold: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A :class:`StreamRng`, or a :class:`HoldingRng`, in a child; the user may kill it."""
    fd = framework.control()
    options = [str(fd), "packed" * packed, "hold" * hold]
    arguments = [sys.executable, "-m", "tests.system.python_device", *options]
    child = subprocess.Popen(arguments, pass_fds=[fd], stdout=subprocess.PIPE, text=True)
    os.close(fd)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"ready {NAME}\n"
        yield child
        child.terminate()
    assert child.returncode in (0, -signal.SIGKILL)


def main(control_fd: str, packed: str, hold: str) -> int:
    """The child."""
    control = inherited(int(control_fd))
    device = (HoldingRng if hold else StreamRng)(NAME, packed=bool(packed))

    def start() -> StreamRng:
        device.start(control)
        return device

    code = serve_until_signal(start)
    control.close()
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
