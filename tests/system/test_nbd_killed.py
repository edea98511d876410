"""Clients that are killed under load, beside one whose data is verified all the while."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.nbd_clients import JOBS, fio_verified
from tests.system.nbd_load import Load
from vduse.testing.nbd import blk_server

pytestmark = pytest.mark.needs("fio")

MIB = 1 << 20
KILLS = 5


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
