"""A tap on a device's side sees what one on the framework's side sees."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from vduse import _native
from vduse.channel.embedded import inherited
from vduse.channel.normalized import normalized
from vduse.channel.tap import Called, Closed, Record, Recorder
from vduse.channel.tapped import TappedControl
from vduse.control.abi import ExtCall, Ioctl
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework

DATA_PATH = {Ioctl.IOTLB_GET_FD, Ioctl.VQ_INJECT_IRQ, Ioctl.IOTLB_GET_INFO}


def lines(records: list[Record]) -> list[str]:
    """The control path in linux/vduse.h's words. A node's end is seen some time later on the
    framework's side."""
    kept = [
        record
        for record in normalized(records)
        if not isinstance(record, Closed)
        and not (isinstance(record, Called) and record.nr in {*DATA_PATH, *ExtCall})
    ]
    return [record.line() for record in kept]


def test_both_sides_see_the_same() -> None:
    ours, theirs = Recorder(), Recorder()
    counted: list[tuple[str, Counter[tuple[int, int]]]] = []
    backend = _native.Backend.memory(1 << 20)
    with Framework(tap=theirs) as framework:
        control = TappedControl(
            inherited(framework.control()), ours, lambda *told: counted.append(told)
        )
        device = BlkDevice("disk0", backend)
        device.start(control)
        framework.dev_add("disk0")
        framework.disk("disk0").pwrite(bytes(4096), 0)
        framework.dev_del("disk0")
        device.close(destroy=True)
        with pytest.raises(OSError):
            control.destroy_dev("disk0")
        assert lines(list(ours.records)) == lines(list(theirs.records))
        called = Counter(
            (record.nr, min(record.result, 0))
            for record in theirs.records
            if isinstance(record, Called) and record.nr in DATA_PATH
        )
        assert counted == [("disk0", called)]
        assert called[Ioctl.IOTLB_GET_FD, 0] >= 2
        control.close()
    backend.close()
    last = ours.records[-1]
    assert isinstance(last, Called)
    assert (last.nr, last.result) == (Ioctl.DESTROY_DEV, -errno.EINVAL)


def test_a_close_is_told_once() -> None:
    recorder = Recorder()
    with Framework() as framework:
        control = TappedControl(inherited(framework.control()), recorder)
        backend = _native.Backend.memory(1 << 20)
        device = BlkDevice("disk0", backend)
        device.start(control)
        device.close()
        device.close()
        control.close()
        backend.close()
    assert sum(isinstance(record, Closed) for record in recorder.records) == 1
