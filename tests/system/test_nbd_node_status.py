"""What lies where on nodes of driver nbd: our NBD export tells what their servers tell."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sparse import sparse
from tests.system.nbd_clients import run
from tests.system.nbd_servers import NbdServer, nbdkit, qemu_nbd
from tests.system.test_block_status import HOLE, told
from tests.system.test_nbd_backend_tls import Authority, nbdkit_with_tls
from tests.system.test_nbd_node import nbd_node
from tests.system.test_storage_sockets import nbd_server, served, uri
from tests.waiting import eventually

pytestmark = [
    pytest.mark.needs(name) for name in ("nbdkit", "qemu-nbd", "qemu-io", "nbdinfo", "openssl")
]

MIB = 1 << 20
SIZE = 64 * MIB
EXPORT = "--export=nbd,id=e0,node-name=remote"


def image(folder: Path) -> Path:
    return sparse(folder / "disk.img", SIZE, (0, 65536), (5 * MIB, MIB), (SIZE - 4096, 4096))


def file_by_qemu(folder: Path) -> NbdServer:
    return qemu_nbd(folder, image(folder), "--shared=16")


def file_by_nbdkit(folder: Path) -> NbdServer:
    return nbdkit(folder, "file", os.fspath(image(folder)))


def large_and_sparse(folder: Path) -> NbdServer:
    # Longer than one question may be.
    return nbdkit(folder, "sparse-random", "5G", "runlength=1048576", "seed=1")


def pages_of_memory(folder: Path) -> NbdServer:
    return nbdkit(folder, "data", "1 @0x100000 2*0x10000 @0x3000000 3", f"size={SIZE}")


def no_extents(folder: Path) -> NbdServer:
    return nbdkit(folder, "--filter=noextents", "file", os.fspath(image(folder)))


def large_blocks(folder: Path) -> NbdServer:
    policy = ("blocksize-minimum=4096", "blocksize-error-policy=error")
    return nbdkit(folder, "--filter=blocksize-policy", "file", os.fspath(image(folder)), *policy)


@pytest.mark.parametrize(
    "make",
    [
        file_by_qemu,
        file_by_nbdkit,
        large_and_sparse,
        pages_of_memory,
        no_extents,
        large_blocks,
    ],
)
def test_it_is_what_the_server_tells(make: Callable[[Path], NbdServer], tmp_path: Path) -> None:
    server = make(tmp_path)
    more = ",read-only=on"
    with server, served(tmp_path, nbd_node(server, more), nbd_server(tmp_path), EXPORT):
        assert told(uri(tmp_path, "remote")) == told(f"nbd+unix:///?socket={server.path}")


def test_all_is_data_where_the_server_cannot_tell(tmp_path: Path) -> None:
    with (
        nbdkit(tmp_path, "--no-sr", "file", os.fspath(image(tmp_path))) as server,
        served(tmp_path, nbd_node(server), nbd_server(tmp_path), EXPORT),
    ):
        assert told(uri(tmp_path, "remote")) == [(0, SIZE, "data")]


def test_it_goes_by_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    credentials = authority.issue(tmp_path / "server", "server", "localhost")
    client = authority.issue(tmp_path / "client", "client", "somebody")
    tls = f"--object=tls-creds-x509,id=tls0,endpoint=client,dir={client}"
    with (
        nbdkit_with_tls(tmp_path, image(tmp_path), credentials) as server,
        served(tmp_path, tls, nbd_node(server, ",tls-creds=tls0"), nbd_server(tmp_path), EXPORT),
    ):
        assert told(uri(tmp_path, "remote")) == [
            (0, 65536, "data"),
            (65536, 5 * MIB - 65536, HOLE),
            (5 * MIB, MIB, "data"),
            (6 * MIB, SIZE - 6 * MIB - 4096, HOLE),
            (SIZE - 4096, 4096, "data"),
        ]


def test_a_sector_that_is_data_in_part_is_data(tmp_path: Path) -> None:
    extents = tmp_path / "extents"
    extents.write_text("0 1000 hole,zero\n1000 100\n1100 1460 hole,zero\n2560 1000000 zero\n")
    arguments = ("--filter=extentlist", "memory", "1M", f"extentlist={extents}")
    with (
        nbdkit(tmp_path, *arguments) as server,
        served(tmp_path, nbd_node(server), nbd_server(tmp_path), EXPORT),
    ):
        found = told(uri(tmp_path, "remote"))
        assert found[:3] == [(0, 512, HOLE), (512, 1024, "data"), (1536, 1024, HOLE)]
        assert [at for at, _, _ in found[3:]][:1] == [2560]


def test_a_server_killed_before_its_answer_is_asked_again(tmp_path: Path) -> None:
    log, path = tmp_path / "log", image(tmp_path)
    slow = nbdkit(
        tmp_path, "--filter=log", "--filter=delay", "file", os.fspath(path),
        f"logfile={log}", "delay-extents=600",
    )  # fmt: skip
    found: list[list[tuple[int, int, str]]] = []

    def ask() -> None:
        found.append(told(uri(tmp_path, "remote")))

    node = nbd_node(slow, ",reconnect-delay=60")
    with slow, served(tmp_path, node, nbd_server(tmp_path), EXPORT):
        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: log.exists() and "Extents" in log.read_text(), "the question")
        slow.kill()
        with nbdkit(tmp_path, "file", os.fspath(path)) as again:
            asking.join()
            assert found == [told(f"nbd+unix:///?socket={again.path}")]


def test_a_server_that_fails_to_tell_goes_on_otherwise(tmp_path: Path) -> None:
    failing = ("error-extents=EIO", "error-extents-rate=100%")
    with (
        nbdkit(tmp_path, "--filter=error", "memory", "1M", *failing) as server,
        served(tmp_path, nbd_node(server), nbd_server(tmp_path), EXPORT + ",writable=on") as client,
    ):
        where = uri(tmp_path, "remote")
        assert run("nbdinfo", "--map", where, check=False) == ""
        run("qemu-io", "-f", "raw", where, "-c", "write -P 1 0 4096", "-c", "read -P 1 0 4096")
        [remote] = client.call("x-query-state")["nodes"]
        assert remote["connection"]["reconnections"] == 0
