"""What NBD exports tell of holes and zeroes: as it is now, whoever has written; beside qemu-nbd on
the same file. A question that nobody answers holds up nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sparse import sparse
from tests.system.nbd_clients import run, run_json
from tests.system.nbd_servers import qemu_nbd
from tests.system.test_storage_sockets import nbd_server, served, uri
from tests.unit.test_native_nbd import BLOCK_STATUS, READ, Client, request
from vduse import _native
from vduse.testing.harness import blk_stack
from vduse.testing.nbd import other_server

pytestmark = pytest.mark.needs("nbdinfo", "qemu-io", "qemu-nbd", "qemu-img", "nbdcopy")

MIB = 1 << 20
SIZE = 16 * MIB
HOLE = "hole,zero"


def told(where: str) -> list[tuple[int, int, str]]:
    """Offset, length and description, all of the disk."""
    found = run_json("nbdinfo", "--json", "--map", where)
    return [(at["offset"], at["length"], at["description"]) for at in found]


def qemu_io(where: str, *commands: str) -> None:
    options = [word for command in commands for word in ("-c", command)]
    run("qemu-io", "-d", "unmap", "-f", "raw", where, *options)


def told_by_qemu(image: Path) -> list[tuple[int, int, str]]:
    """By a qemu-nbd that has just started."""
    command = ["qemu-nbd", "--persistent", "--format=raw", "--read-only", str(image)]
    with other_server(command) as server:
        return told(server.uri)


def test_it_is_as_it_is_now_whoever_has_written(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk.img", SIZE, (0, MIB), (4 * MIB, 2 * MIB))
    one, other = uri(tmp_path, "one"), uri(tmp_path, "other")
    with served(
        tmp_path,
        f"--blockdev=file,filename={image},node-name=disk0,discard=unmap,locking=off",
        nbd_server(tmp_path),
        "--export=nbd,id=e0,node-name=disk0,writable=on,name=one",
        "--export=nbd,id=e1,node-name=disk0,writable=on,name=other",
    ):

        def check(*expected: tuple[int, int, str]) -> None:
            assert told(one) == told(other) == told_by_qemu(image) == list(expected)

        check(
            (0, MIB, "data"),
            (MIB, 3 * MIB, HOLE),
            (4 * MIB, 2 * MIB, "data"),
            (6 * MIB, 10 * MIB, HOLE),
        )
        # By this export, each end of a hole.
        qemu_io(
            one,
            f"discard 0 {MIB}",
            f"write -zu {5 * MIB} {MIB}",
            f"write -P 7 {8 * MIB} {MIB}",
        )
        check(
            (0, 4 * MIB, HOLE),
            (4 * MIB, MIB, "data"),
            (5 * MIB, 3 * MIB, HOLE),
            (8 * MIB, MIB, "data"),
            (9 * MIB, 7 * MIB, HOLE),
        )
        # By the other, where this one knew of zeroes.
        qemu_io(other, f"write -P 8 {5 * MIB} {2 * MIB}", f"discard {8 * MIB} {MIB}")
        check((0, 4 * MIB, HOLE), (4 * MIB, 3 * MIB, "data"), (7 * MIB, 9 * MIB, HOLE))
        # By another program.
        with image.open("r+b") as file:
            file.seek(SIZE - MIB)
            file.write(b"\7" * MIB)
        check(
            (0, 4 * MIB, HOLE),
            (4 * MIB, 3 * MIB, "data"),
            (7 * MIB, 8 * MIB, HOLE),
            (15 * MIB, MIB, "data"),
        )
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", one, other)


def test_a_part_of_a_node_and_a_throttled_one(tmp_path: Path) -> None:
    image = sparse(tmp_path / "disk.img", SIZE, (4 * MIB, 2 * MIB))
    with served(
        tmp_path,
        "--object=throttle-group,id=slow,limits.iops-total=1000000",
        f"--blockdev=file,filename={image},node-name=disk0,discard=unmap",
        f"--blockdev=raw,node-name=part,file=disk0,offset={3 * MIB},size={2 * MIB},discard=unmap",
        f"--blockdev=file,filename={sparse(tmp_path / 'b.img', MIB, (4096, 4096))},node-name=b",
        "--blockdev=throttle,node-name=t,throttle-group=slow,file=b",
        nbd_server(tmp_path),
        "--export=nbd,id=e0,node-name=part,writable=on",
        "--export=nbd,id=e1,node-name=disk0,writable=on",
        "--export=nbd,id=e2,node-name=t",
    ):
        part = uri(tmp_path, "part")
        assert told(part) == [(0, MIB, HOLE), (MIB, MIB, "data")]
        qemu_io(part, f"write -P 1 0 {MIB}", f"discard {MIB} {MIB}")
        assert told(part) == [(0, MIB, "data"), (MIB, MIB, HOLE)]
        whole = [
            (0, 3 * MIB, HOLE),
            (3 * MIB, MIB, "data"),
            (4 * MIB, MIB, HOLE),
            (5 * MIB, MIB, "data"),
            (6 * MIB, 10 * MIB, HOLE),
        ]
        assert told(uri(tmp_path, "disk0")) == whole
        assert told(uri(tmp_path, "t")) == [
            (0, 4096, HOLE),
            (4096, 4096, "data"),
            (8192, MIB - 8192, HOLE),
        ]


@pytest.mark.parametrize("copy", ["nbdcopy", "qemu-img"])
def test_a_copy_of_a_sparse_image_reads_its_data_alone(copy: str, tmp_path: Path) -> None:
    islands = [(MIB, MIB), (300 * MIB, 5 * MIB), ((1 << 30) - MIB, MIB)]
    image = sparse(tmp_path / "disk.img", 1 << 30, *islands)
    target, where = tmp_path / "copy.img", uri(tmp_path, "disk0")
    with served(
        tmp_path,
        f"--blockdev=file,filename={image},node-name=disk0,read-only=on",
        nbd_server(tmp_path),
        "--export=nbd,id=e0,node-name=disk0",
    ) as client:
        if copy == "nbdcopy":
            run("nbdcopy", where, str(target))
        else:
            run("qemu-img", "convert", "-f", "raw", "-O", "raw", where, str(target))
        [stats] = client.call("query-blockstats")
        # qemu-img looks at the first bytes, and reads whole clusters.
        assert 7 * MIB <= stats["stats"]["rd_bytes"] <= 8 * MIB
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), str(target))


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[tuple[_native.NbdExport, Client]]:
    """An export, and a client, of an overlay on an NBD server that answers nothing any more."""
    image = sparse(tmp_path / "disk.img", SIZE)
    with (
        qemu_nbd(tmp_path, image, "--shared=16") as server,
        blk_stack(backend=server.spec, layers=["overlay"]) as stack,
    ):
        device = stack.blk
        export = _native.NbdExport(stack.native, device.pool, data_path=device.data_path)
        client = Client(export)
        assert client.status(0, SIZE) == [(SIZE, 3)]
        server.stall()
        try:
            yield export, client
        finally:
            server.go_on()
            export.close(60.0)
            client.socket.close()


def test_a_question_that_waits_holds_up_no_other_request(
    silent: tuple[_native.NbdExport, Client],
) -> None:
    _, client = silent
    client.send(request(BLOCK_STATUS, 0, SIZE, cookie=7))
    client.write(MIB, b"x" * 4096)
    client.send(request(READ, MIB, 4096, cookie=8))
    assert client.reply()[:2] == (0, 8)


def test_an_export_ends_though_nobody_answers_a_question(
    silent: tuple[_native.NbdExport, Client],
) -> None:
    export, client = silent
    client.send(request(BLOCK_STATUS, 0, SIZE))
    # Taken, for it is answered after the question was.
    client.write(MIB, b"x" * 4096)
    assert not export.close(0.0)
    assert client.has_ended()
    assert export.connections == 0
