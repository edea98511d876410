"""The embedded framework as a :class:`tests.contract.ports.Platform`."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.child_program import ChildProgram
from tests.contract.devices import DEADLINE, background
from tests.contract.embedded_program import EmbeddedProgram
from tests.contract.nursery import Fd
from tests.contract.ports import BlockProgram, Disk, Program, Where
from vduse.bus.driver import Driver
from vduse.framework import Framework
from vduse.testing.harness import BlkSpec, ChildDevice, LocalDevice


class _Killed(BaseException):
    """Ends a waiter."""


class _ChildBlock:
    """Implements :class:`tests.contract.ports.BlockProgram`."""

    def __init__(self, framework: Framework, spec: BlkSpec) -> None:
        self._device = ChildDevice(framework, spec)

    def pause(self) -> None:
        process = self._device.process
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)

    def resume(self) -> None:
        self._device.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._device.kill()

    def close(self) -> None:
        self.resume()
        self._device.close()


class _LocalBlock:
    """Implements :class:`tests.contract.ports.BlockProgram`."""

    def __init__(self, framework: Framework, spec: BlkSpec) -> None:
        self._device: LocalDevice | None = LocalDevice(framework, spec)

    def pause(self) -> None:
        raise NotImplementedError("a device in this process")

    resume = kill = pause

    def close(self) -> None:
        if self._device is not None:
            self._device.close()
            self._device = None


class EmbeddedPlatform:
    """Implements :class:`tests.contract.ports.Platform`."""

    short_timeout = 0.05
    refuses_responses = False
    hears_every_ioctl = True

    def __init__(self, profile: str, where: Where) -> None:
        self.profile = profile
        self.where: Where = where
        self._framework = Framework(profile)
        self._programs: list[Program] = []
        self._blocks: list[BlockProgram] = []

    def program(self) -> Program:
        if self.where == "child":
            return self._add(self._child_program())
        return self._add(EmbeddedProgram(self._framework.control()))

    def unprivileged_program(self) -> Program:
        return self._add(self._child_program(unprivileged=True))

    def block_program(
        self,
        name: str,
        backend: str = "memory",
        *,
        queues: int = 1,
        queue_size: int = 128,
        packed: bool = False,
    ) -> BlockProgram:
        spec = BlkSpec(
            name=name, backend=backend, queues=queues, queue_size=queue_size, packed=packed
        )
        make = _ChildBlock if self.where == "child" else _LocalBlock
        block: BlockProgram = make(self._framework, spec)
        self._blocks.append(block)
        return block

    def control_mode(self) -> int:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "control")
            self._framework.listen(path)
            return stat.S_IMODE(path.stat().st_mode)

    def dev_add(self, name: str, driver: str | None = None) -> None:
        self._framework.dev_add(name, driver=driver)

    def dev_del(self, name: str) -> None:
        self._framework.dev_del(name)

    def bind(self, name: str, driver: str) -> None:
        self._framework.bus.bind(name, driver)

    def unbind(self, name: str) -> None:
        self._framework.bus.unbind(name)

    def driver(self, name: str) -> Driver:
        return self._framework.bus.vhost(name).open()

    def kill_opener(self, name: str, when: Callable[[], object]) -> None:
        # Waiters here are threads, and a signal's handler may end this one.
        def kill(number: int, frame: object) -> None:
            raise _Killed

        def then_kill() -> None:
            when()
            os.kill(os.getpid(), signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, kill)
        try:
            killing = background(then_kill)
            with pytest.raises(_Killed):
                self.driver(name)
        finally:
            signal.signal(signal.SIGUSR1, before)
        killing.result(DEADLINE)

    def disk(self, name: str) -> Disk:
        return self._framework.disk(name)

    def attribute(self, name: str, attribute: str) -> float:
        return float(getattr(self._framework.device(name), attribute))

    def set_attribute(self, name: str, attribute: str, value: float) -> None:
        number = value if attribute == "msg_timeout" else int(value)
        setattr(self._framework.device(name), attribute, number)

    def reclaim(self) -> int:
        return self._framework.shrinker.reclaim()

    def close(self) -> None:
        self._framework.close()
        for program in self._programs:
            program.end()
        for block in self._blocks:
            block.close()

    def _child_program(self, *, unprivileged: bool = False) -> ChildProgram:
        control = self._framework.control()
        try:
            return ChildProgram("embedded", Fd(control), unprivileged=unprivileged)
        finally:
            os.close(control)

    def _add(self, program: Program) -> Program:
        self._programs.append(program)
        return program
