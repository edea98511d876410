"""When faults strike, how often, and what is said of it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.raw_device import Caller, RawDevice, blk_config
from vduse.framework import Framework
from vduse.run.faults.companion import Faults
from vduse.run.faults.spec import FaultSpec
from vduse.run.faults.striker import Striker, Tally
from vduse.run.faults.target import NotNow, Target
from vduse.run.faults.trigger import Trigger
from vduse.run.faults.vdpa import FaultyVdpa
from vduse.run.hooks import Run


class InProcess:
    """A run without a program."""

    def __init__(self, framework: Framework) -> None:
        self.framework = framework
        self.kills = 0
        self.ends: list[str] = []

    @property
    def pid(self) -> int:
        return 100 + self.kills

    def kill(self) -> None:
        self.kills += 1

    def wait_open(self, device: str, timeout: float) -> bool:
        return True

    def rebind(self, device: str, driver: str) -> None:
        self.framework.bus.bind(device, driver)

    def end(self, reason: str) -> None:
        self.ends.append(reason)


@pytest.fixture
def run() -> Iterator[Run]:
    """With devices vd0 and vd1, whose answer to anything is OK."""
    with Framework(bounce_size=1 << 20) as framework:
        control = Caller(framework.control())
        devices = [RawDevice(control, blk_config(f"vd{index}")) for index in range(2)]
        for device in devices:
            device.set_up_queues()
        yield InProcess(framework)
        for device in devices:
            device.close()
        control.close()


class Scripted:
    """A fault that does what it is told, one thing a strike."""

    def __init__(self, *script: str | Exception) -> None:
        self._script = list(script)

    def strike(self, target: Target, stop: threading.Event) -> str:
        step = self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


def add(run: Run, name: str = "vd0") -> FaultyVdpa:
    made = run.framework.dev_add(name, vdpa_type=FaultyVdpa)
    assert isinstance(made, FaultyVdpa)
    return made


def strike(run: Run, fault: Scripted, trigger: Trigger, requests: Callable[[], int]) -> Tally:
    tally = Tally("test", "vd0")
    target = Target(run, add(run))
    spec = FaultSpec.parse("remap")
    Striker(spec, trigger, fault, target, requests, tally).run(threading.Event())
    return tally


def test_it_strikes_after_that_many_requests_since_the_last_time(run: Run) -> None:
    asked: list[int] = []

    def requests() -> int:
        asked.append(len(asked))
        return asked[-1]

    class Notes(Scripted):
        def strike(self, target: Target, stop: threading.Event) -> str:
            at.append(asked[-1])
            return "done"

    at: list[int] = []
    strike(run, Notes(), Trigger(after=10, times=3), requests)
    # One look after each strike says where the next one counts from.
    assert at == [10, 21, 32]


def test_what_cannot_be_struck_now_is_tried_again(run: Run) -> None:
    fault = Scripted(NotNow("later"), NotNow("later"), "done")
    tally = strike(run, fault, Trigger(after=1, times=1), lambda: 1)
    assert (tally.strikes, tally.failed) == (1, 0)
    assert tally.line() == "test: struck vd0 1 time"


def test_what_went_wrong_is_counted_and_said(run: Run) -> None:
    fault = Scripted("done", OSError(errno.EIO, "the device is silent"))
    tally = strike(run, fault, Trigger(every=0.001, times=2), lambda: 0)
    assert (tally.strikes, tally.failed) == (1, 1)
    assert "went wrong 1 time" in tally.line() and "the device is silent" in tally.line()


def test_it_ends_with_its_device(run: Run) -> None:
    class Leaves(Scripted):
        def strike(self, target: Target, stop: threading.Event) -> str:
            run.framework.dev_del("vd0")
            return "gone"

    assert strike(run, Leaves(), Trigger(every=0.001), lambda: 0).strikes == 1


def test_it_ends_with_a_broken_device(run: Run) -> None:
    class Breaks(Scripted):
        def strike(self, target: Target, stop: threading.Event) -> str:
            target.device.messages.break_device("a test")
            raise OSError(errno.EIO, "broken")

    assert strike(run, Breaks(), Trigger(every=0.001), lambda: 0).failed == 1


# --- as a companion --------------------------------------------------------------------------


def attach(run: Run, faults: Faults, *names: str, driver: str = "virtio_vdpa") -> None:
    assert faults.vdpa_type is not None
    for name in names:
        run.framework.dev_add(name, driver=driver, vdpa_type=faults.vdpa_type)
    for name in names:
        faults.attached(run, name)


def facts(faults: Faults) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = faults.finish().facts["faults"]
    return found


def test_each_device_is_struck_and_counted(run: Run) -> None:
    faults = Faults([FaultSpec.parse("storm:every=1ms,times=2,messages=4")])
    attach(run, faults, "vd0", "vd1")
    assert [(each["device"], each["strikes"]) for each in facts(faults)] == [("vd0", 2), ("vd1", 2)]
    assert faults.finish().ok
    sent = run.framework.device("vd0").stats()
    assert (sent["messages_UPDATE_IOTLB"], sent["messages_SET_STATUS"]) == (4, 5 + 4)


def test_the_program_is_killed_once_however_many_devices_it_has(run: Run) -> None:
    faults = Faults([FaultSpec.parse("kill:every=1ms,times=3")])
    attach(run, faults, "vd0", "vd1")
    assert isinstance(run, InProcess) and run.kills == 3
    assert [each["device"] for each in facts(faults)] == ["vd0"]


def test_a_fault_for_the_other_driver_is_said_and_ends_the_run(run: Run) -> None:
    faults = Faults([FaultSpec.parse("silent")])
    attach(run, faults, "vd0", driver="vhost_vdpa")
    outcome = faults.finish()
    assert not outcome.ok
    assert outcome.lines == (
        "silent: struck vd0 never; went wrong 1 time: it is for virtio_vdpa, not vhost_vdpa",
    )
    assert isinstance(run, InProcess)
    assert run.ends == ["fault silent: it is for virtio_vdpa, not vhost_vdpa"]


def test_the_end_of_the_run_ends_the_wait_for_a_strike(run: Run) -> None:
    faults = Faults([FaultSpec.parse("reset:after=1000000"), FaultSpec.parse("rebind:every=60m")])
    faults.stop()
    attach(run, faults, "vd0")
    assert faults.finish().ok
    assert [each["strikes"] for each in facts(faults)] == [0, 0]
