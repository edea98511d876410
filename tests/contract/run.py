"""`vduse run`'s machinery as a :class:`tests.contract.ports.Platform`: the embedded framework in
this process, and device programs in children on /dev/vduse, whose calls a seccomp filter brings
here."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import tempfile
from functools import cache
from typing import Any, cast

from tests.contract.child_block import ChildBlock
from tests.contract.child_program import Child, ChildProgram, Nursery
from tests.contract.embedded import EmbeddedPlatform
from tests.contract.kernel_program import BlockSpec
from tests.contract.nursery import COMMAND, TREE
from tests.contract.ports import BlockProgram, Program
from vduse import _native
from vduse.run.supervisor import Supervisor


@cache
def _watched() -> tuple[_native.Supervised, Nursery]:
    """A nursery under the filter, as are its children. One for all tests: a platform is what
    answers their calls just then. It ends with this process."""
    watched: list[_native.Supervised] = []

    def start(orders: socket.socket) -> None:
        command = [sys.executable, "-c", f"import tests.contract.run_program; {COMMAND}"]
        stdio = (orders.fileno(), 1, 2)
        watched.append(
            _native.Supervised.spawn(command, dict(os.environ), cwd=str(TREE), stdio=stdio)
        )

    nursery = Nursery(start)
    (supervised,) = watched

    def end() -> None:
        nursery.close()
        os.waitpid(supervised.pid, 0)
        supervised.close()

    atexit.register(end)
    return supervised, nursery


class _Kept:
    """A supervised program that outlives its supervisor."""

    def __init__(self, supervised: _native.Supervised) -> None:
        self._supervised = supervised

    def __getattr__(self, name: str) -> Any:
        return getattr(self._supervised, name)

    def close(self) -> None:
        """The next platform goes on with it."""


class RunPlatform(EmbeddedPlatform):
    """Implements :class:`tests.contract.ports.Platform`. One at a time."""

    hears_every_ioctl = False

    def __init__(self, profile: str) -> None:
        super().__init__(profile, "child")
        supervised, self._nursery = _watched()
        nodes = self._framework.nodes
        kept = cast(_native.Supervised, _Kept(supervised))
        nodes.service.add(Supervisor(nodes, kept, lambda device: None))
        # A device's number is that of another one in the next test.
        self._records = tempfile.TemporaryDirectory()

    def program(self) -> Program:
        return self._add(self._program())

    def unprivileged_program(self) -> Program:
        return self._add(self._program(unprivileged=True))

    def block_program(
        self,
        name: str,
        backend: str = "memory",
        *,
        queues: int = 1,
        queue_size: int = 128,
        packed: bool = False,
    ) -> BlockProgram:
        child = Child("run", self._records.name, nursery=self._nursery)
        block = ChildBlock(child, BlockSpec(name, backend, queues, queue_size, packed))
        self._blocks.append(block)
        return block

    def control_mode(self) -> int:
        program = self._program()
        self._add(program)
        return int(program.child.call("control_mode"))

    def close(self) -> None:
        for program in self._programs:
            program.end()
        for block in self._blocks:
            block.kill()
        self._framework.close()
        self._records.cleanup()

    def _program(self, *, unprivileged: bool = False) -> ChildProgram:
        return ChildProgram(
            "run", self._records.name, unprivileged=unprivileged, nursery=self._nursery
        )
