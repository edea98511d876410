"""Programs with disks and devices written in Python that end as they please: no hang, no crash."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, os, sys, threading, time
from vduse.backends.python import PythonBackend
from vduse.testing.harness import BlkSpec, BlkStack
from vduse.framework.framework import Framework

class Disk(PythonBackend):
    size = 1 << 20
    def read(self, offset, buffer):
        {body}
        buffer[:] = bytes(len(buffer))

class Async(PythonBackend):
    size = 1 << 20
    async def read(self, offset, buffer):
        await asyncio.sleep({pause})
        buffer[:] = bytes(len(buffer))

disk = {kind}()
stack = BlkStack(Framework(), BlkSpec(backend=disk.native), "process", "virtio_vdpa")
begun = threading.Event()

def load():
    while True:
        try:
            stack.disk.pread(4096, 0)
        except (OSError, RuntimeError):  # the end has come
            return
        begun.set()

for _ in range(4):
    threading.Thread(target=load, daemon=True).start()
begun.wait(60)
{end}
"""


@pytest.mark.parametrize("kind", ["Disk", "Async"])
@pytest.mark.parametrize("body", ["pass", "time.sleep(0.002)"])
@pytest.mark.parametrize("end", ["", "raise SystemExit(0)"])
def test_program_that_closes_nothing_ends(kind: str, body: str, end: str) -> None:
    program = PROGRAM.format(kind=kind, body=body, end=end, pause=0.001)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_end_does_not_wait_for_a_handler_that_hangs() -> None:
    program = PROGRAM.format(kind="Disk", body="begun.set(); time.sleep(1000)", end="", pause=0)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0


FORK = """
import os
from vduse.backends.python import PythonBackend
from vduse.testing.harness import blk_stack

class Disk(PythonBackend):
    size = 1 << 20
    def submit(self, batch):
        for request in batch:
            if request.op == "read":
                request.buffer[:] = bytes(request.length)
        batch.complete()

disk = Disk()
with blk_stack(backend=disk.native) as stack:
    stack.disk.pread(512, 0)
    child = os.fork()
    if child == 0:
        try:
            disk.resize(2 << 20)
        except RuntimeError as error:
            assert "after a fork" in str(error)
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    stack.disk.pread(512, 0)
disk.close()
"""


def test_forked_child_ends_and_its_parent_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


DEVICE = """
import asyncio, threading, time
from vduse.bus.virtio_rng import VirtioRng
from vduse.channel.embedded import inherited
from vduse.control.features import DeviceId
from vduse.devices.virtio import VirtioDevice
from vduse.framework import Framework

class Rng(VirtioDevice):
    DEVICE_ID = DeviceId.RNG
    {submit} submit(self, queue, batch):
        {pause}
        for chain in batch:
            chain.write(bytes(chain.writable_length))
            chain.complete()

device = Rng("rng0")
framework = Framework(device_ids=[DeviceId.RNG])
device.start(inherited(framework.control()))
framework.dev_add("rng0")
rng = framework.driver("rng0", VirtioRng)
begun = threading.Event()

def load():
    while True:
        try:
            rng.read(16)
        except (OSError, RuntimeError):  # the end has come
            return
        begun.set()

for _ in range(4):
    threading.Thread(target=load, daemon=True).start()
begun.wait(60)
"""


@pytest.mark.parametrize(
    ("submit", "pause"),
    [("def", "pass"), ("def", "time.sleep(0.002)"), ("async def", "await asyncio.sleep(0.002)")],
)
def test_program_that_closes_no_device_of_its_own_type_ends(submit: str, pause: str) -> None:
    program = DEVICE.format(submit=submit, pause=pause)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


FORK_IN_HANDLER = """
import os, sys
from vduse.backends.python import PythonBackend
from vduse.testing.harness import blk_stack

class Disk(PythonBackend):
    size = 1 << 20
    code = None
    def read(self, offset, buffer):
        child = os.fork()
        if child == 0:
            import atexit
            from vduse import _native
            atexit._run_exitfuncs()
            os._exit(5 if _native.end_calls(0.0) else 6)
        self.code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

disk = Disk()
with blk_stack(backend=disk.native) as stack:
    stack.disk.pread(512, 0)
disk.close()
assert disk.code == 5, disk.code
"""


def test_child_forked_by_a_handler_does_not_wait_for_its_parents_calls() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK_IN_HANDLER], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
