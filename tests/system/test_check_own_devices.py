"""Our own daemons keep every rule of the conformance check that they can be brought to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vduse import _native
from vduse.channel.embedded import inherited
from vduse.check.checker import check
from vduse.check.report import Report
from vduse.check.stage import Timing
from vduse.check.watch import Watch
from vduse.devices.virtio import VirtioDevice
from vduse.framework import Framework
from vduse.testing.harness import BlkSpec, ChildDevice

#: Longer than a machine with other things to do may take.
_TIMING = Timing(patience=60.0, quiet=0.1)
#: What cannot be seen on it: it does not resize itself; write protection has a test of its own.
_WRITABLE_MISSES = {"config.announced", "blk.read-only"}


def _checked(spec: BlkSpec, profile: str = "6.12") -> Report:
    """A block device in a process of its own, killed and started again where the check wants."""
    watch = Watch()
    with Framework(profile, tap=watch) as framework:
        children = [ChildDevice(framework, spec)]

        def kill() -> None:
            children.pop().kill()
            children.append(ChildDevice(framework, spec))

        try:
            framework.dev_add(spec.name, driver="vhost_vdpa")
            report = check(framework, spec.name, watch, kill=kill, timing=_TIMING)
            framework.dev_del(spec.name)
        finally:
            for child in children:
                child.close()
    return report


def _image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 16 << 20)
    return str(path)


def _not_reached(report: Report) -> set[str]:
    return {verdict.rule.id for verdict in report.verdicts if verdict.state == "not reached"}


@pytest.mark.parametrize("profile", ["6.12", "7.2"])
def test_block_device_in_a_child_keeps_the_rules(tmp_path: Path, profile: str) -> None:
    report = _checked(BlkSpec(backend=_image(tmp_path), queues=4, packed=True), profile)
    assert report.ok, report.failed
    assert _not_reached(report) == _WRITABLE_MISSES


def test_block_device_that_is_read_only_keeps_the_rules(tmp_path: Path) -> None:
    report = _checked(BlkSpec(backend=_image(tmp_path), read_only=True))
    assert report.ok, report.failed
    missing = {"config.num-queues", "config.announced", "blk.write-zeroes", "recovery.data"}
    assert _not_reached(report) == missing | {"blk.data"}


class Echo(VirtioDevice):
    """A device of no known type."""

    DEVICE_ID = 42

    def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        """Gives back what it is given."""
        for chain in batch:
            chain.write(chain.read())
            chain.complete()


def test_device_of_another_type_is_looked_at_without_requests() -> None:
    watch = Watch()
    with Framework(tap=watch, device_ids=[42]) as framework:
        control = inherited(framework.control())
        device = Echo("echo0", packed=True)
        device.start(control)
        framework.dev_add("echo0", driver="vhost_vdpa")
        report = check(framework, "echo0", watch, timing=_TIMING)
        framework.dev_del("echo0")
        device.close()
        control.close()
    assert report.ok, report.failed
    reached = {verdict.rule.id for verdict in report.verdicts if verdict.state == "passed"}
    assert {"status.features-unoffered", "status.unmapped-queue", "state.unknown-queue"} <= reached
    why = {verdict.rule.id: verdict.detail for verdict in report.verdicts}
    assert why["used.once"] == ("not a block device: its requests are not known here",)
