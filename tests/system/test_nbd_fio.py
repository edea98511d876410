"""fio's nbd engine, which checks what it reads back: requests from a sector to 1 MiB, four
connections, 32 requests in flight on each."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.nbd_clients import JOBS, fio_verified
from vduse.testing.nbd import NbdChild, blk_server

pytestmark = pytest.mark.needs("fio")

MIB = 1 << 20
#: Of the disk: the area of every job is a quarter.
SIZE = 256 * MIB
#: Bytes of a request, and MiB that each job writes.
BLOCKS = [("512", 1), ("4k", 8), ("64k", 32), ("1m", 64)]


@pytest.fixture(
    scope="module", params=["memory-split", "memory-packed", "file-split", "file-packed"]
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NbdChild]:
    backend, ring = request.param.split("-")
    arguments = ["memory", "--size", "256M"]
    if backend == "file":
        image = tmp_path_factory.mktemp("fio") / "disk.img"
        with image.open("wb") as file:
            file.truncate(SIZE)
        arguments = [str(image)]
    rings = ["--packed"] if ring == "packed" else []
    with blk_server(*arguments, "--queues", "2", *rings) as server:
        yield server


@pytest.mark.parametrize(("block", "mib"), BLOCKS, ids=[block for block, _ in BLOCKS])
def test_what_fio_wrote_it_reads_back(
    server: NbdChild, tmp_path: Path, block: str, mib: int
) -> None:
    found = fio_verified(server.uri, tmp_path, bs=block, size=f"{mib}m")
    assert found.error == 0
    assert found.written_bytes == found.read_bytes == JOBS * mib * MIB
    assert found.written == found.read


def test_sizes_of_all_kinds_with_reads_and_flushes_among_them(
    server: NbdChild, tmp_path: Path
) -> None:
    """Blocks are read back while others are being written, every 16 writes are flushed."""
    among = {"verify_backlog": 32, "verify_backlog_batch": 16, "fsync": 16}
    found = fio_verified(server.uri, tmp_path, bsrange="512-1m", size="64m", **among)
    assert found.error == 0
    assert found.written_bytes == found.read_bytes == JOBS * 64 * MIB


def test_fio_finds_data_that_is_not_what_was_written(tmp_path: Path) -> None:
    """The null backend forgets: without this, the tests above would show nothing."""
    with blk_server("null", "--size", "64M") as server:
        assert fio_verified(server.uri, tmp_path, bs="4k", size="1m").error == errno.EILSEQ
