"""A block device served by a child on /dev/vduse."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.contract.child_program import Child
from tests.contract.kernel_program import BlockSpec
from tests.waiting import eventually


class ChildBlock:
    """Implements :class:`tests.contract.ports.BlockProgram`."""

    def __init__(self, child: Child, spec: BlockSpec) -> None:
        """``child``: a :class:`~tests.contract.kernel_program.KernelProgram`."""
        self._child = child
        self._child.call("serve_block", spec)

    def pause(self) -> None:
        self._child.signal(signal.SIGSTOP)
        state = Path(f"/proc/{self._child.pid}/stat")
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "a stop")

    def resume(self) -> None:
        self._child.signal(signal.SIGCONT)

    def kill(self) -> None:
        self._child.end()

    def close(self) -> None:
        if not self._child.ended:
            self._child.call("end_block")
            self._child.end()
