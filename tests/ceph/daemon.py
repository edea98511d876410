"""`vduse storage-daemon` on images of a cluster, as a child."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.ceph.cluster import POOL, Cluster
from tests.unit.qmp_client import QmpClient
from vduse.testing.closing import Closing

#: Seconds that it may take to end.
_PATIENCE = 120.0


def blockdev(cluster: Cluster, image: str, name: str = "disk", more: str = "") -> str:
    """A node of an image, for the command line; ``more``: ``,key=value...``."""
    return f"rbd,node-name={name},pool={POOL},image={image},conf={cluster.conf}{more}"


class StorageDaemon(Closing):
    """Serves until :meth:`quit` or the end of its ``with``; ``arguments`` are the command's."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.monitor = str(folder / "qmp.sock")
        monitor = f"socket,id=m,path={self.monitor},server=on,wait=off"
        self._errors = folder / "storage-daemon.errors"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vduse.daemon", "storage-daemon", "--json"),
                    *(*arguments, "--chardev", monitor, "--monitor", "chardev=m"),
                ],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        assert first and json.loads(first)["event"] == "serving", self.errors

    @property
    def errors(self) -> str:
        """What it has written to its standard error."""
        return self._errors.read_text()

    def qmp(self) -> QmpClient:
        """A client of its monitor."""
        return QmpClient(self.monitor)

    def quit(self) -> None:
        """Ends it in order."""
        with self.qmp() as qmp:
            assert qmp.call("quit") == {}
        self._process.communicate(timeout=_PATIENCE)
        assert self._process.returncode == 0, self.errors

    def close(self) -> None:
        """Ends it at once, unless it has ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
