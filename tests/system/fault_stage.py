"""A run in process: a block device of ours, a framework, and faults that go along."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from vduse import _native
from vduse.framework import Framework
from vduse.run.faults.companion import Faults
from vduse.run.faults.spec import FaultSpec
from vduse.run.hooks import Outcome
from vduse.testing.closing import Closing
from vduse.testing.harness import BlkSpec, BusDriver, ChildDevice, LocalDevice, Where


class FaultStage(Closing):
    """Implements :class:`vduse.run.hooks.Run` for one device, in this process or in a child, which
    alone can be killed."""

    def __init__(
        self, spec: BlkSpec, faults: Sequence[str], driver: BusDriver, where: Where = "process"
    ) -> None:
        self.spec = spec
        self.faults = Faults([FaultSpec.parse(text) for text in faults])
        self.kills = 0
        self._where = where
        self._driver = driver
        with ExitStack() as undo:
            self._framework = undo.enter_context(Framework(bounce_size=4 << 20))
            self.device = self._make_device()
            undo.callback(lambda: self.device.close())
            assert self.faults.vdpa_type is not None
            self.framework.dev_add(spec.name, driver=driver, vdpa_type=self.faults.vdpa_type)
            self._undo = undo.pop_all()

    def _make_device(self) -> LocalDevice | ChildDevice:
        if self._where == "child":
            return ChildDevice(self.framework, self.spec)
        return LocalDevice(self.framework, self.spec)

    # --- a run ------------------------------------------------------------------------------

    @property
    def framework(self) -> Framework:
        return self._framework

    @property
    def pid(self) -> int:
        assert isinstance(self.device, ChildDevice)
        return self.device.process.pid

    def kill(self) -> None:
        assert isinstance(self.device, ChildDevice)
        self.device.kill()
        self.kills += 1
        self.device = self._make_device()

    def wait_open(self, device: str, timeout: float) -> bool:
        return self.device.serving

    def rebind(self, device: str, driver: str) -> None:
        self.framework.bus.unbind(device)
        self.framework.bus.bind(device, driver)

    def end(self, reason: str) -> None:
        raise AssertionError(reason)

    # --- a test -----------------------------------------------------------------------------

    @property
    def lines(self) -> list[_native.VqLine]:
        """The virtqueues' kicks and irqs, for a vhost_vdpa client whose kicks are to be counted: a
        kick eventfd of its own our device would watch itself."""
        return [vq.line for vq in self.framework.device(self.spec.name).vqs]

    @contextmanager
    def striking(self) -> Iterator[threading.Thread]:
        """The faults strike meanwhile; the thread ends when the last one has struck as often as it
        is to."""
        thread = threading.Thread(target=self.faults.attached, args=[self, self.spec.name])
        thread.start()
        try:
            yield thread
        finally:
            self.faults.stop()
            thread.join()

    def outcome(self) -> Outcome:
        """At the end."""
        return self.faults.finish()

    def strikes(self) -> list[int]:
        """How often each has struck."""
        return [tally["strikes"] for tally in self.outcome().facts["faults"]]

    def close(self) -> None:
        """The device leaves the bus, then its program ends."""
        with self._undo:
            self.framework.dev_del(self.spec.name)
