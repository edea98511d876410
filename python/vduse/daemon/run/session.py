"""One run: a framework, a program, its devices and what goes along, from the start to the end."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from vduse.channel.tap import tee
from vduse.control.statistics import collect
from vduse.daemon.dev.embedded import EmbeddedFace
from vduse.daemon.dev.qmp import commands
from vduse.daemon.errors import UserError
from vduse.daemon.qmp.server import QmpServer
from vduse.daemon.run import companions
from vduse.daemon.run.commands import RunOptions
from vduse.daemon.run.devices import Devices
from vduse.daemon.run.facts import Broken, Counted, Ended, Exited, Facts, Found, Started
from vduse.daemon.run.places import Places
from vduse.exports.errors import ExportError
from vduse.exports.listen import UnixListener
from vduse.framework import Framework
from vduse.framework.device import VduseDevice
from vduse.run.environment import environment, temporary_folder
from vduse.run.hooks import Companion
from vduse.run.processes import AllChildren, kill_descendants
from vduse.run.program import PATIENCE, Exit, Program

log = logging.getLogger(__name__)

#: Who may write the QMP socket may take the devices away.
_QMP_MODE = 0o600
#: Seconds, at the end, for a program that is alive to let go of its devices, and for what goes
#: along to come to an end.
_END_TIMEOUT = 30.0


@dataclass(frozen=True)
class End:
    """The run is to end."""

    reason: str


@dataclass(frozen=True)
class Count:
    """Somebody wants the counters."""


@contextmanager
def _stdin() -> Iterator[int]:
    """The program's: this process's, but for a terminal. In a process group of its own (Ctrl-C is
    for this command) it would be stopped as soon as it reads there."""
    if not os.isatty(0):
        yield 0
        return
    with open(os.devnull, "rb") as nothing:
        yield nothing.fileno()


class Session:
    """What a run's companions and its program's watcher see of it: a :class:`vduse.run.hooks.Run`
    and a :class:`vduse.run.program.Watcher`."""

    def __init__(
        self, options: RunOptions, places: Places, along: tuple[Companion, ...], *, json: bool
    ) -> None:
        """Nothing runs yet. ``along``: what goes along. UserError."""
        self.events: SimpleQueue[Facts | Count | End] = SimpleQueue()
        self.failures: list[str] = []
        self._argv = options.program
        self._ending = False
        self._changed = threading.Condition()
        #: Devices that a living program has open and set up.
        self._open: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._exits = ExitStack()
        self._companions = along
        needed = companions.needed_driver(self._companions, options)
        with ExitStack() as undo:
            undo.callback(self._exits.close)
            self._folder = temporary_folder()
            self._exits.callback(self._folder.cleanup)
            self._framework = Framework(
                options.profile,
                msg_timeout=options.msg_timeout,
                tap=tee(companion.tap for companion in self._companions),
            )
            self._exits.callback(self._framework.close)
            device_type = companions.device_type(self._companions)
            self._devices = Devices(self._framework, places, options.driver, needed, device_type)
            stdin = self._exits.enter_context(_stdin())
            self._program = Program(
                self._framework,
                self._argv,
                environment(self._folder.name),
                self,
                # A check goes on where a daemon dies of what is done to it.
                restart=options.restart or options.check,
                stdio=(stdin, 2 if json else 1, 2),
                family=AllChildren().of,
            )
            self._qmp = self._serve_qmp(options.qmp) if options.qmp is not None else None
            undo.pop_all()

    def start(self) -> None:
        """Starts the program. ProgramError."""
        try:
            self._program.start()
        except BaseException:
            self._exits.close()
            raise

    def look(self) -> Iterator[Facts | End]:
        """What is to be looked for now and then: devices that have broken."""
        for name, why in self._devices.broken():
            self.failures.append(f"{name} is broken: {why}")
            yield Broken("broken", name, why)
        if self._devices.all_broken:
            yield End("no device answers any more")

    def counted(self) -> Counted:
        """The counters now."""
        supervised = self._program.supervised
        return Counted(
            event="statistics",
            statistics=collect(disks=self._devices.disks, exports=self._devices.exports),
            framework=self._devices.counts(),
            notifications=supervised.stats() if supervised is not None else {},
        )

    def finish(self, reason: str) -> Iterator[Facts]:
        """Ends everything in order: what goes along, the sockets, the devices, the program and
        what it has started, the framework. What there was to say, Ended at last."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._qmp is not None:
            self._qmp.close()
        self._stop_companions()
        self._detach()
        in_time = self._program.end()
        if not in_time:
            self.failures.append(f"the program had to be killed: SIGTERM was {PATIENCE:g} s ago")
        self._framework.close()
        for thread in self._threads:
            thread.join(_END_TIMEOUT)
        with suppress(Empty):
            while True:
                event = self.events.get_nowait()
                if not isinstance(event, End | Count):
                    yield event
        for line in self._devices.unserved():
            log.warning("%s", line)
        found = list(self._outcomes())
        yield from found
        self._exits.close()
        code = self._program.exit_code or int(bool(self.failures))
        if not in_time or not all(one.ok for one in found):
            code = 1
        yield Ended("ended", reason, code, tuple(self.failures))

    def abandon(self) -> str:
        """Before this process ends at once: nothing is left of the program. Nothing to say."""
        kill_descendants()
        self._folder.cleanup()
        return ""

    # --- Run --------------------------------------------------------------------------------

    @property
    def framework(self) -> Framework:
        return self._framework

    @property
    def pid(self) -> int:
        return self._program.pid

    def kill(self) -> None:
        self._program.kill()

    def wait_open(self, device: str, timeout: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ending or device in self._open, timeout)
            return device in self._open and not self._ending

    def rebind(self, device: str, driver: str) -> None:
        self._devices.rebind(device, driver)

    def end(self, reason: str) -> None:
        self.events.put(End(reason))

    # --- Watcher ----------------------------------------------------------------------------

    def started(self, pid: int, starts: int) -> None:
        self.events.put(Started("started", pid, self._argv, os.getpid(), self._folder.name, starts))

    def set_up(self, device: VduseDevice) -> None:
        with self._changed:
            self._open.add(device.name)
            self._changed.notify_all()
        if self._devices.is_new(device):
            self._thread(lambda: self._attach(device), f"vduse-attach {device.name}")

    def exited(self, exit: Exit) -> None:
        with self._changed:
            self._open.clear()
        self.events.put(Exited("exited", exit.pid, exit.code, exit.signal, exit.restart))

    def ended(self) -> None:
        self.events.put(End("the program has ended"))

    # --- inside -----------------------------------------------------------------------------

    def _attach(self, device: VduseDevice) -> None:
        try:
            serving = self._devices.attach(device)
        except (OSError, ExportError) as error:
            if not self._ending and not device.destroyed:
                why = (error.strerror if isinstance(error, OSError) else None) or str(error)
                self.failures.append(f"{device.name}: {why}")
                self.events.put(Broken("broken", device.name, why))
                self._devices.give_up_one(device)
                if self._devices.all_broken:
                    self.events.put(End(f"{device.name} cannot be served"))
            return
        self.events.put(serving)
        for companion in self._companions:
            self._thread(
                lambda companion=companion: companion.attached(self, device.name),  # type: ignore[misc]
                f"vduse-{type(companion).__name__} {device.name}",
            )

    def _thread(self, work: Callable[[], None], name: str) -> None:
        """A fault in it is the run's, and ends nothing else."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                if not self._ending:
                    log.exception("%s failed", name)
                    self.failures.append(f"{name}: {error}")

        thread = threading.Thread(target=run, name=name, daemon=True)
        with self._changed:
            self._threads = [one for one in self._threads if one.is_alive()]
            thread.start()
            self._threads.append(thread)

    def _stop_companions(self) -> None:
        for companion in self._companions:
            companion.stop()

    def _detach(self) -> None:
        answering = self._program.running
        timer = threading.Timer(_END_TIMEOUT, self._devices.give_up, ["it let nobody go in time"])
        timer.daemon = True
        timer.start()
        try:
            self.failures += self._devices.detach(answering=answering)
        finally:
            timer.cancel()
        self.failures += (f"{name} is broken: {why}" for name, why in self._devices.broken())

    def _outcomes(self) -> Iterator[Found]:
        for companion in self._companions:
            try:
                outcome = companion.finish()
            except OSError as error:  # a file of its user's that cannot be written
                self.failures.append(f"{error.filename}: {error.strerror}")
                continue
            if outcome is not None:
                if not outcome.ok:
                    self.failures.append(f"{outcome.name}: not all is well")
                yield Found("found", outcome.name, outcome.ok, outcome.lines, outcome.facts)

    def _serve_qmp(self, path: str) -> QmpServer:
        try:
            listener = UnixListener(path, _QMP_MODE)
        except ExportError as error:
            raise UserError(str(error)) from None
        face = EmbeddedFace(self._framework, self._devices, self._who)
        server = QmpServer(commands(face))
        server.listen(listener)
        self._exits.callback(server.close)
        return server

    def _who(self) -> str:
        return f"{self._argv[0]} (pid {self._program.pid})"
