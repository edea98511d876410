"""`vduse` commands as children that start in no time: forked where all is imported already.

In an emulated guest a new interpreter takes seconds, and what kills programs starts many.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        __name__,
        "vduse.daemon.main",
        "vduse.daemon.blk.serve",
        "vduse.daemon.blk.kernel",
    ]
)


class Command:
    """One running command; ``output`` and ``log`` are files that get what it prints."""

    def __init__(self, argv: Sequence[str], output: Path, log: Path) -> None:
        output.write_bytes(b"")
        self._output = output
        self._process = _forks.Process(target=_run, args=(argv, str(output), str(log)))
        self._process.start()

    def lines(self) -> list[str]:
        """What it has printed so far, whole lines. ChildProcessError: it has ended."""
        *lines, _ = self._output.read_text().split("\n")
        if not lines and self._process.exitcode is not None:
            raise ChildProcessError(f"exit status {self._process.exitcode}")
        return lines

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self, number: signal.Signals) -> int | None:
        """Sends a signal and waits for the end; the exit status, negative of who was killed."""
        self.send(number)
        self._process.join()
        return self._process.exitcode

    def close(self) -> None:
        """Kills it, where it runs."""
        self._process.kill()
        self._process.join()


def _run(argv: Sequence[str], output: str, log: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for path, number in ((output, 1), (log, 2)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, number)
        os.close(fd)
    from vduse.daemon.main import main

    sys.exit(main(argv))
