"""qemu-storage-daemon under `vduse run` while NBD clients use it: killed, and resized."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic
from urllib.parse import quote

import pytest

from tests.system.nbd_clients import JOBS, fio_verified, run_json
from tests.system.nbd_load import Load
from tests.system.qemu_daemon import MIB, PROGRAM, make_image, monitor, on_file
from tests.unit.qmp_client import QmpClient
from vduse.testing.run import vduse_run

pytestmark = pytest.mark.needs("qemu-storage-daemon", "fio", "nbdinfo")

SIZE = 64 * MIB
KILLS = 4
#: Seconds after which something that must happen has not.
LIMIT = 60.0


def uri(socket: Path) -> str:
    return f"nbd+unix:///?socket={quote(str(socket))}"


def test_killed_again_and_again_under_load(tmp_path: Path) -> None:
    """What was in flight is in the log that it keeps in its TMPDIR: the next one takes it up. The
    client sees no error, and all that it wrote is there."""
    socket = tmp_path / "nbd.sock"
    image = make_image(tmp_path / "disk.img", SIZE)
    options = ["--restart", "--nbd", str(socket)]
    checks = {"verify": "crc32c", "verify_fatal": 1, "verify_backlog": 64}
    area = {"size": f"{SIZE // JOBS // MIB}m", "offset_increment": f"{SIZE // JOBS // MIB}m"}
    with vduse_run(PROGRAM, *on_file(image, queues=JOBS), options=options) as run:
        run.wait_for("serving")
        with Load(uri(socket), tmp_path, rw="randwrite", bs="4k", **area, **checks) as load:
            for kill in range(KILLS):
                load.goes_on()
                os.kill(run.daemon, signal.SIGKILL)
                run.wait_for("started", starts=kill + 2)
            load.goes_on()
            assert load.stop() == 0
        assert fio_verified(uri(socket), tmp_path, bs="4k", size="2m").error == 0
        assert run.stop() == 0


def test_a_resize_reaches_clients_that_connect_later(tmp_path: Path) -> None:
    """By its QMP, as its users do it: SET_CONFIG and a config interrupt."""
    socket, qmp = tmp_path / "nbd.sock", tmp_path / "qmp.sock"
    image = make_image(tmp_path / "disk.img", SIZE)
    daemon = [PROGRAM, *monitor(qmp), *on_file(image)]
    with vduse_run(*daemon, options=["--nbd", str(socket)]) as run:
        run.wait_for("serving")
        assert exported(socket) == SIZE
        with QmpClient(str(qmp)) as client:
            client.call("block_resize", node_name="disk0", size=2 * SIZE)
        # Each look is a connection of its own; the interrupt is handled beside them.
        end = monotonic() + LIMIT
        while exported(socket) != 2 * SIZE:
            assert monotonic() < end
        found = fio_verified(uri(socket), tmp_path, bs="4k", offset=SIZE, size="2m")
        assert found.error == 0
        assert run.stop() == 0


def exported(socket: Path) -> int:
    """Bytes, as a client that connects now sees it."""
    [export] = run_json("nbdinfo", "--json", uri(socket))["exports"]
    size = export["export-size"]
    assert isinstance(size, int)
    return size
