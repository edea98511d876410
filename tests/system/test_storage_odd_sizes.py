"""Images whose size is no multiple of a sector, as `vduse storage-daemon` exports their bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.nbd_clients import run
from tests.system.test_storage_sockets import nbd_server, served, uri

pytestmark = [pytest.mark.needs(name) for name in ("qemu-img", "qemu-io", "nbdcopy")]

SECTOR = 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A new one, which ends within a sector."""
    path = tmp_path / "new.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M")
    assert path.stat().st_size % SECTOR
    return path


def test_every_byte_of_an_image_is_exported(tmp_path: Path, image: Path) -> None:
    before = image.read_bytes()
    whole = before.ljust(len(before) + -len(before) % SECTOR, b"\0")
    node = f"--blockdev=file,node-name=bytes,filename={image},locking=off"
    export = "--export=nbd,id=e0,node-name=bytes,writable=on"
    with served(tmp_path, node, nbd_server(tmp_path), export):
        where, copy = uri(tmp_path, "bytes"), tmp_path / "copy"
        run("nbdcopy", where, str(copy))
        assert copy.read_bytes() == whole
        assert image.read_bytes() == before, "to read it is not to change it"
        last = len(whole) - SECTOR
        run("qemu-io", "-f", "raw", where, "-c", f"write -P 7 {last} {SECTOR}")
        assert image.read_bytes() == whole[:last] + b"\7" * SECTOR


def test_an_image_is_opened_over_an_export_of_its_bytes(tmp_path: Path, image: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    node = f"--blockdev=file,node-name=bytes,filename={image},locking=off"
    export = "--export=nbd,id=e0,node-name=bytes,writable=on"
    with (
        served(tmp_path, node, nbd_server(tmp_path), export),
        served(
            other,
            f"--blockdev=nbd,node-name=bytes,export=bytes,"
            f"server.type=unix,server.path={tmp_path}/nbd.sock",
            "--blockdev=qcow2,node-name=disk,file=bytes",
            nbd_server(other),
            "--export=nbd,id=e0,node-name=disk",
        ),
    ):
        run("qemu-io", "-r", "-f", "raw", uri(other, "disk"), "-c", "read -P 0 0 1M")
