"""What one test has on its bench: a framework, devices and daemons on it, and a look at what is
left when all is cleared away. The pytest plugin's fixtures are made of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from vduse import _native
from vduse.backends.layers import Faults, error
from vduse.backends.python import PythonBackend
from vduse.backends.spec import open_backend
from vduse.channel.tap import Recorder
from vduse.device.workers import shared_pool
from vduse.framework import Framework
from vduse.testing.closing import Closing
from vduse.testing.daemon import Daemon
from vduse.testing.harness import BlkSpec, BlkStack, BusDriver, LocalDevice, Where
from vduse.testing.leaks import Held

#: Records of the control path shown of a failed test, the last ones.
_SHOWN = 200


class Bench(Closing):
    """A framework of its own, and devices that end with it."""

    def __init__(self, profile: str = "6.12", *, trace: bool = True) -> None:
        """``trace``: the control path is kept for :meth:`sections`, which takes memory.
        ValueError: no such profile."""
        self._held = Held.now()
        self._tap = Recorder()
        self._stacks: list[BlkStack] = []
        self._daemons: list[Daemon] = []
        #: Objects to close, by id: one may serve several devices.
        self._backends: dict[int, _native.Backend | PythonBackend] = {}
        with ExitStack() as undo:
            undo.enter_context(_talking())
            #: The framework.
            self.framework = undo.enter_context(
                Framework(profile, tap=self._tap if trace else None)
            )
            self._exits = undo.pop_all()

    def device(
        self,
        backend: str | _native.Backend | PythonBackend = "memory",
        *,
        name: str | None = None,
        driver: BusDriver | None = "virtio_vdpa",
        where: Where = "process",
        faults: Faults | None = None,
        **options: Any,
    ) -> BlkStack:
        """A running block device on the bus; ``options`` as :class:`BlkSpec` has them. Without
        a name it is disk0, disk1, and so on. A backend that is an object is closed with the
        bench. ``faults``: rules by which its requests fail, changed at any time."""
        name = name or f"disk{len(self._stacks)}"
        spec = BlkSpec(name=name, backend=self._backend(backend), **options)
        if faults is not None:
            spec = self._faulty(spec, faults)
        stack = BlkStack(self.framework, spec, where, driver)
        self._exits.callback(stack.close)
        self._stacks.append(stack)
        return stack

    def daemon(self, *argv: str, env: Mapping[str, str] | None = None) -> Daemon:
        """A running VDUSE daemon, by its command line; see :class:`Daemon`. ProgramError."""
        daemon = Daemon(self.framework, argv, env=env)
        self._exits.callback(daemon.close)
        self._daemons.append(daemon)
        return daemon

    def _backend(self, backend: str | _native.Backend | PythonBackend) -> str | _native.Backend:
        if isinstance(backend, str):
            return backend
        if isinstance(backend, type):
            name = backend.__name__
            raise TypeError(f"{name} is a class: make a disk of it, {name}()")
        if id(backend) not in self._backends:
            self._backends[id(backend)] = backend
            self._exits.callback(backend.close)
        return backend.native if isinstance(backend, PythonBackend) else backend

    def _faulty(self, spec: BlkSpec, faults: Faults) -> BlkSpec:
        backend = spec.backend
        if isinstance(backend, str):
            backend = open_backend(
                backend,
                size=spec.size,
                read_only=spec.read_only,
                direct=spec.direct,
                layers=spec.layers,
                pool=shared_pool,
            )
        elif isinstance(backend, PythonBackend):
            backend = backend.native
        backend = error(backend, faults)
        self._exits.callback(backend.close)
        return replace(spec, backend=backend, size=None, layers=())

    def sections(self) -> list[tuple[str, str]]:
        """Titles and texts about every device and daemon, and the control path's last messages."""
        found = [(f"vduse {stack.spec.name}", _describe(stack)) for stack in self._stacks]
        found += [(f"vduse daemon {each.argv[0]}", each.describe()) for each in self._daemons]
        lines = self._tap.lines(times=True)
        left_out = [f"... {len(lines) - _SHOWN} before"] if len(lines) > _SHOWN else []
        return [*found, ("vduse control path", "\n".join(left_out + lines[-_SHOWN:]))]

    def close(self) -> None:
        """Last device first. Whatever fails, the rest is closed too; then it is raised."""
        try:
            self._exits.close()
        finally:
            self._backends.clear()
            self._stacks.clear()  # their memory lives as long as they
            self._daemons.clear()

    def leaks(self) -> list[str]:
        """After :meth:`close`: fds and threads that were not there before."""
        return self._held.new()


def _describe(stack: BlkStack) -> str:
    """The counts of both sides, and how the device ended if it did."""
    looks: dict[str, Callable[[], object]] = {
        "driver": lambda: json.dumps(stack.disk.stats()),
    }
    if isinstance(stack.device, LocalDevice):
        blk = stack.device.blk
        looks |= {
            "device ended": lambda: blk.ended,
            "device stopped": lambda: blk.fault,
            "device": lambda: json.dumps(blk.stats()),
        }
    lines = [str(stack.spec)]
    for title, look in looks.items():
        try:
            value = look()
        except Exception as error:  # a report must not fail: it says what could be seen
            value = f"({type(error).__name__}: {error})"
        if value is not None:
            lines.append(f"{title}: {value}")
    return "\n".join(lines)


@contextmanager
def _talking() -> Iterator[None]:
    """The package logs everything, for the handlers that pytest has; unless a level was set."""
    logger = logging.getLogger("vduse")
    level = logger.level
    if level == logging.NOTSET:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
