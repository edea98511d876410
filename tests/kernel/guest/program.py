"""A disk of the kernel's whose program is a child of the test, as a daemon's is.

    with served("disk0", "file:/tmp/image", queues=4) as program:
        program.add()  # to the vDPA bus: /dev/vdX
        program.stats()

The child is disk_program.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.kernel.guest.bed import node_of
from vduse.control.statistics import DeviceStats
from vduse.vdpa.drivers import VdpaBus
from vduse.vdpa.netlink import VdpaManagement


class DiskProgram:
    """The child, seen from the test."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self._process = process

    def add(self) -> str:
        """Puts the disk on the vDPA bus; its node."""
        with VdpaManagement() as vdpa:
            vdpa.add(self.name)
        return node_of(self.name)

    def stats(self) -> DeviceStats:
        """What the child has counted so far."""
        stats: DeviceStats = self._ask("stats")
        return stats

    def resize(self) -> int:
        """Has the child look at its backend's size again; bytes."""
        size: int = self._ask("resize")
        return size

    def end(self) -> int:
        """Takes the disk off the bus and ends the child; its exit status."""
        with VdpaManagement() as vdpa:
            if self.name in VdpaBus().names():
                vdpa.delete(self.name)
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait()

    def _ask(self, word: str) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(word, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@contextmanager
def served(
    name: str, backend: str, *, size: int | None = None, direct: bool = False, **settings: Any
) -> Iterator[DiskProgram]:
    """A child that serves a backend (:func:`~vduse.backends.spec.open_backend`), with the settings
    of :class:`~vduse.devices.blk.BlkDevice`. Afterwards the disk is gone."""
    argument = json.dumps(
        {"name": name, "backend": backend, "size": size, "direct": direct, "settings": settings}
    )
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kernel.guest.disk_program", argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            program = DiskProgram(name, process)
            yield program
            assert program.end() == 0
        finally:
            process.kill()
