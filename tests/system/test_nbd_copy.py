"""Images copied over NBD and back by nbdcopy and qemu-img, and what nbdinfo and qemu-img say of
an export: the holes of a sparse image arrive as holes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sparse import sparse
from tests.system.nbd_clients import run, run_json
from vduse.testing.nbd import blk_server

MIB = 1 << 20
SIZE = 1 << 30
SECTOR = 512
PAGE = 4096
#: Offsets and lengths in bytes of where the image has data: both ends, single sectors, places
#: that begin and end within a page, one byte within a sector.
ISLANDS = [
    (0, SECTOR),
    (MIB - SECTOR, 2 * SECTOR),
    (10 * MIB + 3 * SECTOR, 5 * MIB + SECTOR),
    (100 * MIB + 1, 1),
    (300 * MIB, 24 * MIB),
    (777 * MIB + 7 * SECTOR, 65 * SECTOR),
    (SIZE - SECTOR, SECTOR),
]
#: The most bytes of disk that the data may take: each island whole pages, and one more at either
#: end for what the file system adds.
MOST = sum(length + 4 * PAGE for _, length in ISLANDS)


def islands(folder: Path) -> Path:
    """An image with data in :data:`ISLANDS`; the rest is holes."""
    return sparse(folder / "source", SIZE, *ISLANDS)


def empty(path: Path) -> Path:
    """An image that is one hole."""
    path.touch()
    os.truncate(path, SIZE)
    return path


def allocated(path: Path) -> int:
    """Bytes of disk that a file takes."""
    return path.stat().st_blocks * SECTOR


def check_equal(one: Path | str, other: Path | str) -> None:
    """Byte by byte."""
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(one), str(other))


@pytest.mark.needs("nbdcopy", "qemu-img")
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_nbdcopy_there_and_back_keeps_the_holes(ring: str, tmp_path: Path) -> None:
    source, far, back = (
        islands(tmp_path),
        empty(tmp_path / "far"),
        tmp_path / "back",
    )
    rings = ["--packed"] if ring == "packed" else []
    with blk_server(str(far), "--queues", "4", *rings) as server:
        run("nbdcopy", "--flush", str(source), server.uri)
        run("nbdcopy", server.uri, str(back))
        check_equal(source, server.uri)
    check_equal(source, far)
    check_equal(source, back)
    assert allocated(far) <= MOST
    assert allocated(back) <= MOST


@pytest.mark.needs("nbdcopy", "qemu-img")
def test_nbdcopy_makes_holes_where_there_was_data(tmp_path: Path) -> None:
    """By write zeroes: what it finds at the far end is not zero."""
    source, far = islands(tmp_path), empty(tmp_path / "far")
    with far.open("r+b") as file:
        file.write(b"\xff" * (64 * MIB))
    with blk_server(str(far)) as server:
        run("nbdcopy", "--flush", str(source), server.uri)
    check_equal(source, far)
    assert allocated(far) <= MOST


@pytest.mark.needs("nbdcopy", "qemu-img")
def test_nbdcopy_from_server_to_server(tmp_path: Path) -> None:
    source = islands(tmp_path)
    with (
        blk_server(str(source), "--read-only", "--queues", "2") as one,
        blk_server("memory", "--size", "1G", "--queues", "2") as other,
    ):
        run("nbdcopy", "--flush", one.uri, other.uri)
        check_equal(one.uri, other.uri)


@pytest.mark.needs("qemu-img")
def test_qemu_img_there_and_back_keeps_the_holes(tmp_path: Path) -> None:
    source, far, back = (
        islands(tmp_path),
        empty(tmp_path / "far"),
        tmp_path / "back",
    )
    raw = ["-f", "raw", "-O", "raw"]
    with blk_server(str(far), "--queues", "4") as server:
        run("qemu-img", "convert", "-n", *raw, str(source), server.uri)
        check_equal(source, server.uri)
        run("qemu-img", "convert", *raw, server.uri, str(back))
        assert run_json("qemu-img", "info", "--output=json", server.uri)["virtual-size"] == SIZE
    check_equal(source, far)
    check_equal(source, back)
    assert allocated(far) <= MOST
    assert allocated(back) <= MOST


def extents(uri: str) -> list[tuple[int, int, str]]:
    """Offset, length and description, as nbdinfo has them."""
    found = run_json("nbdinfo", "--json", "--map", uri)
    return [(at["offset"], at["length"], at["description"]) for at in found]


@pytest.mark.needs("nbdinfo", "qemu-io")
def test_an_overlay_tells_what_it_holds_over_what_is_beneath(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
        file.write(b"\xa5" * (2 * MIB))
    with blk_server(str(image), "--layer", "overlay") as server:

        def qemu_io(*commands: str) -> None:
            options = [word for command in commands for word in ("-c", command)]
            run("qemu-io", "-d", "unmap", "-f", "raw", server.uri, *options)

        assert extents(server.uri) == [(0, 2 * MIB, "data"), (2 * MIB, 6 * MIB, "hole,zero")]
        qemu_io(f"discard {MIB} {MIB}", f"write -P 0x5a {4 * MIB - PAGE} {2 * PAGE}")
        assert extents(server.uri) == [
            (0, MIB, "data"),
            (MIB, 3 * MIB - PAGE, "hole,zero"),
            (4 * MIB - PAGE, 2 * PAGE, "data"),
            (4 * MIB + PAGE, 4 * MIB - PAGE, "hole,zero"),
        ]
        qemu_io(f"write -P 7 {MIB + 512} 512", f"write -z {4 * MIB} {4 * MIB}")
        assert extents(server.uri) == [
            (0, MIB + PAGE, "data"),
            (MIB + PAGE, 3 * MIB - 2 * PAGE, "hole,zero"),
            (4 * MIB - PAGE, PAGE, "data"),
            (4 * MIB, 4 * MIB, "hole,zero"),
        ]


@pytest.mark.needs("nbdinfo")
@pytest.mark.parametrize("read_only", [False, True], ids=["read-write", "read-only"])
def test_nbdinfo_shows_what_is_promised(read_only: bool, tmp_path: Path) -> None:
    image = empty(tmp_path / "disk.img")
    options = ["--read-only"] if read_only else []
    with blk_server(str(image), "--queues", "2", *options) as server:
        facts = run_json("nbdinfo", "--json", server.uri)
    assert (facts["protocol"], facts["TLS"]) == ("newstyle-fixed", False)
    assert facts["structured"] is True
    [export] = facts["exports"]
    promised = {
        "export-size": SIZE,
        "contexts": ["base:allocation"],
        "is_read_only": read_only,
        "can_multi_conn": True,
        "can_flush": True,
        "can_fua": True,
        "can_df": True,
        "can_trim": not read_only,
        "can_zero": not read_only,
        "block_size_minimum": 512,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 * MIB,
    }
    assert {name: export.get(name) for name in promised} == promised
