"""Whether `vduse run` works here."""

from __future__ import annotations

import os
import sys
import threading

from vduse.daemon.doctor.check import Check, missing, ok
from vduse.framework import Framework
from vduse.framework.device import VduseDevice
from vduse.run.checks import check_host
from vduse.run.errors import ProgramError
from vduse.run.program import Exit, Program

_NAME = "vduse run"
_HOW = "docs/run.md says what it needs; in a container: allow seccomp and process_vm_readv"
#: Seconds for an interpreter that opens a file.
_PATIENCE = 20.0
_OPENS = "import os; os.stat('/dev/vduse/control'); os.open('/dev/vduse/control', os.O_RDWR)"


class _Watcher:
    def __init__(self) -> None:
        self.over = threading.Event()

    def started(self, pid: int, starts: int) -> None:
        """It runs."""

    def set_up(self, device: VduseDevice) -> None:
        """It makes none."""

    def exited(self, exit: Exit) -> None:
        """See :attr:`Program.exit_code`."""

    def ended(self) -> None:
        self.over.set()


def supervision() -> Check:
    """Really runs a program that opens the control node: kernel, seccomp profile, Yama and
    listeners above this process all refuse in their own way."""
    watcher = _Watcher()
    argv = [sys.executable, "-I", "-S", "-c", _OPENS]
    try:
        check_host()
        with Framework() as framework, open(os.devnull, "r+b") as nothing:
            stdio = (nothing.fileno(),) * 3
            program = Program(framework, argv, dict(os.environ), watcher, stdio=stdio)
            program.start()
            in_time = watcher.over.wait(_PATIENCE)
            program.end(patience=0.0)
    except (ProgramError, OSError) as error:
        return missing(_NAME, str(error), _HOW)
    if not in_time or program.exit_code != 0:
        how = f"exit code {program.exit_code}" if in_time else f"not within {_PATIENCE:g} s"
        detail = f"a program was not given its /dev/vduse ({how})"
        return missing(_NAME, detail, _HOW)
    return ok(_NAME, "other people's VDUSE daemons, unmodified")
