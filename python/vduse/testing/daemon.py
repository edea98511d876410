"""A VDUSE daemon under test: a program under an embedded framework of this process.

with Framework() as framework, Daemon(framework, ["my-daemon", "disk.img"]) as daemon:
    daemon.disk().pwrite(data, 0)
    daemon.kill()
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory

from vduse.bus.disk import Disk
from vduse.bus.driver import Driver
from vduse.exports.vhost_user import VhostUserServer
from vduse.framework import Framework
from vduse.framework.device import VduseDevice
from vduse.run.checks import check_host, check_program
from vduse.run.environment import environment, temporary_folder
from vduse.run.errors import ProgramError
from vduse.run.program import Exit, Program
from vduse.testing.closing import Closing
from vduse.testing.harness import BusDriver

#: Seconds that a daemon has to create its device, and to come back after a kill.
PATIENCE = 60.0


class _Life:
    """What is known of a program: a :class:`~vduse.run.program.Watcher`, and those who wait for
    something of it."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._changed = threading.Condition()
        self._devices: list[str] = []
        #: Those that the program that lives now has set up.
        self._open: set[str] = set()
        self._starts = 0
        self._exits: list[Exit] = []
        self._ended = False

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of those that were set up."""
        with self._changed:
            return tuple(self._devices)

    @property
    def open(self) -> set[str]:
        """Names of those that a program which lives has set up."""
        with self._changed:
            return set(self._open)

    @property
    def exits(self) -> tuple[Exit, ...]:
        """Each time that it ended."""
        with self._changed:
            return tuple(self._exits)

    @property
    def over(self) -> bool:
        """It is not started again."""
        with self._changed:
            return self._ended

    @property
    def starts(self) -> int:
        """How often it was started."""
        with self._changed:
            return self._starts

    def started(self, pid: int, starts: int) -> None:
        with self._changed:
            self._starts = starts
            self._changed.notify_all()

    def set_up(self, device: VduseDevice) -> None:
        with self._changed:
            self._open.add(device.name)
            if device.name not in self._devices:
                self._devices.append(device.name)
            self._changed.notify_all()

    def exited(self, exit: Exit) -> None:
        with self._changed:
            self._open.clear()
            self._exits.append(exit)
            self._changed.notify_all()

    def ended(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_device(self, name: str | None) -> str:
        """As :meth:`Daemon.device`."""
        what = f"device {name}" if name else "device"
        with self._changed:
            self._wait(lambda: self._find(name) is not None, f"a {what} was set up")
            found = self._find(name)
        assert found is not None
        return found

    def wait_open(self, name: str, starts: int) -> None:
        """Until the device is set up by a program that was started after ``starts`` others."""
        with self._changed:
            self._wait(
                lambda: self._starts > starts and name in self._open, f"device {name} was set up"
            )

    def wait_started(self, starts: int) -> None:
        """Until it was started more than ``starts`` times."""
        with self._changed:
            self._wait(lambda: self._starts > starts, "it was started again")

    def wait_over(self) -> Exit:
        """The last end. TimeoutError: it goes on."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, PATIENCE):
                raise TimeoutError(f"{self._program}: has not ended within {PATIENCE:g} s")
            return self._exits[-1]

    def _wait(self, reached: Callable[[], bool], what: str) -> None:
        """The lock is held."""
        self._changed.wait_for(lambda: reached() or self._ended, PATIENCE)
        if reached():
            return
        if not self._ended:
            raise TimeoutError(f"{self._program}: not within {PATIENCE:g} s: {what}")
        how = _how(self._exits[-1]) if self._exits else "nothing"
        raise ProgramError(f"{self._program}: ended with {how} before {what}: see its output")

    def _find(self, name: str | None) -> str | None:
        if name is None:
            return self._devices[0] if self._devices else None
        return name if name in self._devices else None


class Daemon(Closing):
    """A program, from its start to :meth:`close`; the devices that it makes, by their names.

    What it prints goes where this process's output goes. Its temporary files (``TMPDIR``) are in a
    folder of its own, which a daemon that was killed finds again.
    """

    def __init__(
        self,
        framework: Framework,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        restart: bool = False,
    ) -> None:
        """``argv``: its command line, the program by its path or as found on ``PATH``. ``env``:
        what is added to this process's environment. ``restart``: it is started again where it
        dies by itself, or ends with an error; not for ever. ProgramError: it cannot be run, or
        nothing can be run under a framework here; the message says why."""
        self.argv = tuple(argv)
        self._framework = framework
        self._life = _Life(self.argv[0])
        self._drivers: dict[str, Driver] = {}
        check_host()
        with ExitStack() as undo:
            variables = environment(undo.enter_context(temporary_folder())) | dict(env or {})
            check_program(self.argv[0], variables)
            self._program = Program(framework, self.argv, variables, self._life, restart=restart)
            self._program.start()
            undo.callback(self._program.end)
            self._rest = undo.pop_all()

    @property
    def pid(self) -> int:
        """Its process; another one after :meth:`kill`."""
        return self._program.pid

    @property
    def exits(self) -> tuple[Exit, ...]:
        """How it ended, each time so far."""
        return self._life.exits

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices that it has made, all virtqueues set up, in this order."""
        return self._life.devices

    def device(self, name: str | None = None) -> str:
        """The name of the first device; or ``name``, once that device is there. ProgramError: the
        daemon has ended; TimeoutError: it has not made it within :data:`PATIENCE` seconds."""
        return self._life.wait_device(name)

    def disk(self, name: str | None = None) -> Disk:
        """A block device under virtio_vdpa, as a disk; waits as :meth:`device`. DeviceBusy:
        something has it open under vhost_vdpa; whatever the driver's probe raises."""
        return self._framework.disk(self._bound(name, "virtio_vdpa"))

    def driver(self, name: str | None = None) -> Driver:
        """A device under vhost_vdpa, opened: to drive it step by step, whatever it is. The same
        one each time; closed at the end. Waits as :meth:`device`."""
        name = self._bound(name, "vhost_vdpa")
        if name not in self._drivers:
            self._drivers[name] = self._framework.bus.vhost(name).open()
        return self._drivers[name]

    @contextmanager
    def vhost_user(self, name: str | None = None) -> Iterator[str]:
        """The path of a vhost-user socket in front of a device under vhost_vdpa; serves one front
        end after the other until the end. Closes what :meth:`driver` has given; waits as
        :meth:`device`."""
        name = self._bound(name, "vhost_vdpa")
        self._close_driver(name)
        vhost = self._framework.bus.vhost(name)
        with TemporaryDirectory(prefix="vduse-") as folder:
            path = f"{folder}/vhost-user.sock"
            with VhostUserServer(vhost, path):
                yield path

    def kill(self) -> None:
        """SIGKILL, to it and all that it has forked. The next one is started at once and finds its
        devices as they were left: what was in flight is still to be answered."""
        starts = self._life.starts
        self._program.kill()
        self._life.wait_started(starts)

    def replace(self, name: str) -> None:
        """As :meth:`kill`, and waits until the next one has set up the device of that name."""
        starts = self._life.starts
        self._program.kill()
        self._life.wait_open(name, starts)

    def wait(self) -> Exit:
        """Until it has ended by itself. TimeoutError."""
        return self._life.wait_over()

    def close(self) -> None:
        """Takes its devices off the bus and ends it: SIGTERM, in time SIGKILL. Whatever fails, the
        rest is done too; then it is raised."""
        with ExitStack() as exits:
            exits.callback(self._rest.close)
            # Nobody would answer the reset of one that has ended; the framework's close waits for
            # nobody.
            for name in self._life.open & set(self._framework.bus.devices):
                exits.callback(self._framework.dev_del, name)
            for driver in self._drivers.values():
                exits.callback(driver.close)
            self._drivers.clear()

    def describe(self) -> str:
        """Lines for a report: how it stands."""
        bus = self._framework.bus.devices
        state = "ended" if self._life.over else f"runs as process {self.pid}"
        lines = [f"{' '.join(self.argv)}: {state}"]
        lines += [f"device {name}: {bus.get(name) or 'not driven'}" for name in self.devices]
        lines += [f"ended before with {_how(end)}" for end in self.exits]
        return "\n".join(lines)

    def _bound(self, name: str | None, driver: BusDriver) -> str:
        """The device's name, once that driver is bound to it."""
        name = self.device(name)
        bus = self._framework.bus.devices
        if name not in bus:
            self._framework.dev_add(name, driver=driver)
        elif bus[name] != driver:
            self._close_driver(name)
            self._framework.bus.bind(name, driver)
        return name

    def _close_driver(self, name: str) -> None:
        if name in self._drivers:
            self._drivers.pop(name).close()


def _how(end: Exit) -> str:
    return end.signal or f"exit code {end.code}"
