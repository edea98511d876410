"""Clients that are killed under load, beside one whose data is verified all the while."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.system.nbd_clients import JOBS, LIMIT, fio_command, fio_verified
from vduse.testing.nbd import blk_server

pytestmark = pytest.mark.needs("fio")

MIB = 1 << 20
KILLS = 5


class Load:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_killed_clients_hurt_nobody(ring: str, tmp_path: Path) -> None:
    rings = ["--packed"] if ring == "packed" else []
    with blk_server("memory", "--size", "256M", "--queues", "2", *rings) as server:
        area = {"size": "16m", "offset_increment": "16m"}
        checks = {"verify": "crc32c", "verify_fatal": 1, "verify_backlog": 64}
        with Load(
            server.uri, tmp_path, rw="randwrite", bsrange="512-64k", **area, **checks
        ) as load:
            load.goes_on()
            for _ in range(KILLS):
                with Load(
                    server.uri, tmp_path, rw="randrw", bs="64k", offset="128m", **area
                ) as victim:
                    victim.goes_on()
                    victim.kill()
                load.goes_on()
            assert load.stop() == 0
        found = fio_verified(server.uri, tmp_path, bs="64k", size="16m")
        assert (found.error, found.read_bytes) == (0, JOBS * 16 * MIB)
        assert server.stop() == 0
