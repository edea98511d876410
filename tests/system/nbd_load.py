"""fio without end on an NBD server, as a child."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.system.nbd_clients import JOBS, LIMIT, fio_command
from vduse.testing.closing import Closing


class Load(Closing):
    """fio with no end, which says every tenth of a second how far it is."""

    def __init__(self, uri: str, folder: Path, **options: object) -> None:
        endless = {"time_based": 1, "runtime": "1h", "status-interval": "100ms"}
        self.process = subprocess.Popen(
            fio_command(
                uri, numjobs=JOBS, group_reporting=1, **endless, **options, output_format="terse"
            ),
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        #: KiB that were read.
        self.read = 0
        #: The first errno of a job.
        self.error = 0

    def _hear(self) -> bool:
        """One line more; false at the end."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        # fio(1), "Terse output": the version 3, fio's own, job, group, error, KiB read.
        if line.startswith("3;"):
            fields = line.split(";")
            self.error, self.read = int(fields[4]), int(fields[5])
        return bool(line)

    def goes_on(self) -> None:
        """Returns when it has read more than before."""
        before = self.read
        while self.read <= before:
            assert self._hear(), "fio ended by itself"

    def stop(self) -> int:
        """As by ^C, which fio takes as its end; the first errno of a job."""
        self.process.send_signal(signal.SIGINT)
        while self._hear():
            pass
        self.process.wait(LIMIT)
        return self.error

    def kill(self) -> None:
        """SIGKILL: all its connections end in mid-request."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
