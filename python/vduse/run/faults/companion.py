"""The faults of a run: see :mod:`vduse.run.hooks`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict

from vduse.framework.device import VduseDevice
from vduse.framework.vdpa_device import Provision, VdpaDevice
from vduse.run.faults import late_enable
from vduse.run.faults.requests import Requests
from vduse.run.faults.spec import FaultSpec
from vduse.run.faults.striker import Striker, Tally
from vduse.run.faults.target import Target
from vduse.run.faults.vdpa import FaultyVdpa, Late
from vduse.run.hooks import Companion, Outcome, Run


class Faults(Companion):
    """Strikes every device of the run with each fault."""

    def __init__(self, specs: Sequence[FaultSpec]) -> None:
        self._specs = specs
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._vdpas: dict[str, FaultyVdpa] = {}
        self._tallies: dict[tuple[int, str], Tally] = {}
        #: Devices whose requests count for faults of the program.
        self._attached: list[str] = []
        #: Of each fault of the program, the device that it is counted with.
        self._claims: dict[int, str] = {}
        self.vdpa_type = self._make_vdpa

    def attached(self, run: Run, device: str) -> None:
        with self._lock:
            target = Target(run, self._vdpas[device])
            if device not in self._attached:
                self._attached.append(device)
        threads = [
            threading.Thread(target=striker.run, args=[self._stop], name="vduse-fault", daemon=True)
            for number, spec in enumerate(self._specs)
            if (striker := self._striker(number, spec, target)) is not None
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        self._stop.set()

    def finish(self) -> Outcome:
        with self._lock:
            tallies = [self._tallies[key] for key in sorted(self._tallies)]
        return Outcome(
            "fault",
            ok=not any(tally.failed for tally in tallies),
            lines=tuple(tally.line() for tally in tallies),
            facts={"faults": [asdict(tally) for tally in tallies]},
        )

    def _make_vdpa(self, device: VduseDevice, provision: Provision) -> VdpaDevice:
        made = FaultyVdpa(device, provision, self._late(device.name))
        with self._lock:
            self._vdpas[device.name] = made
        return made

    def _striker(self, number: int, spec: FaultSpec, target: Target) -> Striker | None:
        kind = spec.kind
        if kind.make is None or spec.trigger is None:
            return None
        if kind.of_program and not self._claim(number, target.name):
            return None
        tally = self._tally(number, spec, target.name)
        driver = target.driver
        if driver not in kind.drivers:
            why = f"it is for {' and '.join(sorted(kind.drivers))}, not {driver or 'no driver'}"
            tally.went_wrong(why)
            target.run.end(f"fault {spec.text}: {why}")
            return None
        requests: Callable[[], int]
        if kind.of_program:
            requests = _Sum(target.run, self._attached)
        else:
            requests = Requests(target.run, target.name)
        return Striker(spec, spec.trigger, kind.make(spec.values), target, requests, tally)

    def _claim(self, number: int, device: str) -> bool:
        """Whether this is the device through which a fault strikes the program."""
        with self._lock:
            return self._claims.setdefault(number, device) == device

    def _late(self, device: str) -> Late | None:
        for number, spec in enumerate(self._specs):
            if spec.kind is late_enable.KIND:
                tally = self._tally(number, spec, device)
                queue = int(spec.values["queue"])
                return Late(
                    spec.values["by"],
                    None if queue == late_enable.LAST else queue,
                    tally.by_itself,
                )
        return None

    def _tally(self, number: int, spec: FaultSpec, device: str) -> Tally:
        with self._lock:
            return self._tallies.setdefault((number, device), Tally(spec.text, device))


class _Sum:
    """Requests of all devices, those that come later too."""

    def __init__(self, run: Run, devices: Sequence[str]) -> None:
        self._run = run
        self._devices = devices
        self._counters: list[Requests] = []

    def __call__(self) -> int:
        for device in self._devices[len(self._counters) :]:
            self._counters.append(Requests(self._run, device))
        return sum(counter() for counter in self._counters)
