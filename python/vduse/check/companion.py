"""The check as what goes along with `vduse run --check`."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from threading import Condition, Event, Lock
from time import monotonic

from rich.console import Console

from vduse.check.checker import check
from vduse.check.report import Report, junit, show
from vduse.check.watch import Watch
from vduse.run.hooks import Companion, Outcome, Run

#: Seconds that a daemon which was killed has to be back.
_BACK = 60.0
_LOOK = 0.2
#: Seconds that a check which is to end may take for it.
_END = 10.0


class CheckCompanion(Companion):
    """Checks the devices one after the other as they come, then asks for the end of the run."""

    driver = "vhost_vdpa"

    def __init__(self, say: Callable[[str], None], junit_file: str | None = None) -> None:
        """``say``: a line for whoever waits; ``junit_file``: where JUnit XML goes in the end."""
        self.watch = Watch()
        self.tap = self.watch
        self._say = say
        self._junit_file = junit_file
        self._stop = Event()
        #: One at a time: a daemon is killed in a check, with all its devices.
        self._turn = Lock()
        self._changed = Condition()
        #: Devices that are checked, or wait for it.
        self._under_way = 0
        self._reports: dict[str, Report] = {}

    def attached(self, run: Run, device: str) -> None:
        """Runs all scenarios on it."""
        with self._changed:
            self._under_way += 1
        try:
            with self._turn:
                if not self._stop.is_set():
                    self._reports[device] = self._check(run, device)
        finally:
            with self._changed:
                self._under_way -= 1
                last = self._under_way == 0
                self._changed.notify_all()
            if last:
                run.end("all devices were checked")

    def stop(self) -> None:
        """Waits for the check that is under way, at most :data:`_END` seconds."""
        self._stop.set()
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0, _END)

    def finish(self) -> Outcome:
        """Writes the JUnit file. OSError."""
        reports = self._finished()
        if self._junit_file is not None:
            Path(self._junit_file).write_bytes(junit(reports))
        text = StringIO()
        console = Console(file=text)
        for report in reports:
            show(report, console)
        if not reports:
            console.print("no device was created: nothing was checked")
        return Outcome(
            "check",
            ok=bool(reports) and all(report.ok for report in reports),
            # A device's name may be no text.
            lines=tuple(
                line.encode(errors="backslashreplace").decode()
                for line in text.getvalue().splitlines()
            ),
            facts={"devices": [report.facts() for report in reports]},
        )

    def _check(self, run: Run, device: str) -> Report:
        watched = self.watch.device(device)

        def kill() -> None:
            opens, deadline = watched.opens, monotonic() + _BACK
            run.kill()
            while not watched.wait_opened(opens, _LOOK):
                if self._stop.is_set() or monotonic() >= deadline:
                    raise TimeoutError("nobody serves the device any more")
            if not run.wait_open(device, _BACK):
                raise TimeoutError("its virtqueues are not set up any more")

        return check(
            run.framework,
            device,
            self.watch,
            kill=kill,
            say=lambda line: self._say(f"{device}: {line}"),
            stop=self._stop,
        )

    def _finished(self) -> list[Report]:
        """With those that were never attached: what the tap has seen of them."""
        for watched in self.watch.devices():
            if watched.name not in self._reports:
                watched.finish()
                report = Report(watched.name, tuple(watched.ledger.verdicts()))
                self._reports[watched.name] = report
        return list(self._reports.values())
