"""`vduse storage-daemon` with nodes of driver nbd, on other projects' servers."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import zeroes
from tests.system.nbd_clients import JOBS, Verified, fio_verified
from tests.system.nbd_servers import NbdServer, nbdkit, qemu_nbd
from tests.system.test_nbd_backend_tls import Authority, nbdkit_with_tls
from tests.system.test_storage_daemon import Host
from tests.system.test_storage_sockets import nbd_server, node, served, uri
from tests.unit.qmp_client import QmpClient
from tests.waiting import eventually
from vduse.daemon.storage.daemon import OptionError
from vduse.framework import Framework

pytestmark = [pytest.mark.needs(name) for name in ("nbdkit", "qemu-nbd", "fio", "openssl")]

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return zeroes(tmp_path / "disk.img", SIZE)


@pytest.fixture(params=["nbdkit", "qemu-nbd"])
def server(request: pytest.FixtureRequest, tmp_path: Path, image: Path) -> NbdServer:
    """On ``image``; to be started."""
    if request.param == "nbdkit":
        return nbdkit(tmp_path, "file", str(image))
    return qemu_nbd(tmp_path, image, "--shared=16")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Framework() as framework:
        yield Host(framework, tmp_path)


def nbd_node(server: NbdServer, more: str = "", name: str = "remote") -> str:
    where = f"server.type=unix,server.path={server.path}"
    return f"--blockdev=driver=nbd,node-name={name},{where},open-timeout=60{more}"


def writes(client: QmpClient) -> int:
    """Of all exports of the node."""
    stats = client.call("query-blockstats")
    return sum(each["stats"]["wr_operations"] for each in stats)


def wait_for_writes(client: QmpClient, goal: int) -> None:
    eventually(lambda: writes(client) >= goal, f"{goal} writes")


def test_fio_loses_nothing_while_the_server_is_killed_and_started(
    server: NbdServer, tmp_path: Path
) -> None:
    export = "--export=nbd,id=e0,node-name=remote,name=disk,writable=on"
    options = (nbd_node(server, ",reconnect-delay=60"), nbd_server(tmp_path), export)
    with server, served(tmp_path, *options) as client:
        found: list[Verified] = []

        def verify() -> None:
            where = uri(tmp_path, "disk")
            # Slow enough for the server to be killed among the writes.
            found.append(fio_verified(where, tmp_path, bs="4k", size="4m", rate_iops=500))

        fio = threading.Thread(target=verify)
        fio.start()
        for killed in range(1, 5):
            wait_for_writes(client, killed * 800)
            server.kill()
            server.start()
        fio.join()
        assert [(each.error, each.written_bytes) for each in found] == [(0, JOBS * 4 * MIB)]


def test_the_node_is_what_the_server_has(tmp_path: Path, image: Path) -> None:
    with (
        qemu_nbd(tmp_path, image, "--export-name=a b") as server,
        served(tmp_path, nbd_node(server, ",export=a b,on-error=wait")) as client,
    ):
        [known] = client.call("query-named-block-nodes")
        assert known["drv"] == "nbd"
        assert known["file"] == f"nbd+unix:///a%20b?socket={server.path}"
        assert (known["ro"], known["image"]["virtual-size"]) == (False, SIZE)
        refusal = client.refusal("block_resize", node_name="remote", size=2 * SIZE)
        assert refusal == "Cannot resize NBD nodes"


def test_a_read_only_export_needs_a_read_only_node(tmp_path: Path, image: Path) -> None:
    with qemu_nbd(tmp_path, image, "--read-only") as server:
        with (
            pytest.raises(OptionError, match="NBD export is read-only"),
            served(tmp_path, nbd_node(server)),
        ):
            pass
        for more in (",read-only=on", ",auto-read-only=on"):
            with served(tmp_path, nbd_node(server, more)) as client:
                [known] = client.call("query-named-block-nodes")
                assert known["ro"]


@pytest.mark.parametrize("writable", ["off", "on"])
def test_a_loss_is_told_where_something_may_have_been_written(
    tmp_path: Path, image: Path, caplog: pytest.LogCaptureFixture, writable: str
) -> None:
    with (
        qemu_nbd(tmp_path, image) as server,
        served(
            tmp_path,
            "--object=throttle-group,id=g",
            nbd_node(server, ",reconnect-delay=0"),
            "--blockdev=throttle,node-name=slow,file=remote,throttle-group=g",
            nbd_server(tmp_path),
            f"--export=nbd,id=e,node-name=slow,writable={writable}",
        ),
    ):
        server.kill()
    told = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert [re.sub(": .*", "", text) for text in told] == (
        ["export e", "e", "node slow", "node remote"] if writable == "on" else []
    )


def test_no_server_and_no_export_are_one_line(tmp_path: Path, image: Path) -> None:
    with qemu_nbd(tmp_path, image, "--export-name=disk") as server, served(tmp_path) as client:
        arguments = {"driver": "nbd", "node_name": "remote"}
        there = {"type": "unix", "path": str(server.path)}
        # Waits for the server.
        client.call("blockdev-add", **arguments, server=there, export="disk", open_timeout=60)
        client.call("blockdev-del", node_name="remote")
        refusal = client.refusal("blockdev-add", **arguments, server=there, export="other")
        assert refusal.startswith(
            f"nbd:unix:{server.path},export=other: the server has no such export"
        )
        nowhere = {"type": "unix", "path": f"{tmp_path}/none.sock"}
        refusal = client.refusal("blockdev-add", **arguments, server=nowhere)
        assert refusal == f"nbd:unix:{tmp_path}/none.sock: No such file or directory"
        assert client.call("query-named-block-nodes") == []


def test_tls_is_by_a_clients_credentials(tmp_path: Path, image: Path) -> None:
    authority = Authority(tmp_path / "authority")
    credentials = authority.issue(tmp_path / "server", "server", "localhost")
    client = authority.issue(tmp_path / "client", "client", "somebody")
    stranger = Authority(tmp_path / "other").issue(tmp_path / "stranger", "client", "somebody")

    def refusal(server: NbdServer, folder: Path, more: str = "", creds: str = "") -> str:
        with (
            pytest.raises(OptionError) as refused,
            served(
                tmp_path,
                f"--object=tls-creds-x509,id=tls0,dir={folder}{creds}",
                nbd_node(server, more).replace("open-timeout=60", "open-timeout=0"),
            ),
        ):
            pass
        return str(refused.value)

    with nbdkit_with_tls(tmp_path, image, credentials) as server:
        tls = f"--object=tls-creds-x509,id=tls0,endpoint=client,dir={client}"
        with served(tmp_path, tls, nbd_node(server, ",tls-creds=tls0")) as monitor:
            assert "is in use" in monitor.refusal("object-del", id="tls0")
            [known] = monitor.call("query-named-block-nodes")
            assert known["image"]["virtual-size"] == SIZE
            monitor.call("blockdev-del", node_name="remote")
            monitor.call("object-del", id="tls0")
        assert "requires TLS" in refusal(server, client)
        assert "invalid peer certificate" in refusal(server, stranger, ",tls-creds=tls0")
        other = ",tls-creds=tls0,tls-hostname=elsewhere"
        assert "invalid peer certificate" in refusal(server, client, other)
        ends = refusal(server, credentials, ",tls-creds=tls0", ",endpoint=server")
        assert "Expecting TLS credentials with a client endpoint" in ends
        trusting = refusal(server, client, ",tls-creds=tls0", ",verify-peer=off")
        assert "a server's certificate is verified" in trusting


def test_a_stalled_server_holds_up_its_own_device_alone(
    host: Host, tmp_path: Path, image: Path
) -> None:
    with (
        qemu_nbd(tmp_path, image) as server,
        host.client(
            nbd_node(server, ",reconnect-delay=60"),
            node(tmp_path, "local"),
            "--export=vduse-blk,id=e0,node-name=remote,name=remote,writable=on",
            "--export=vduse-blk,id=e1,node-name=local,name=local,writable=on",
        ) as client,
    ):
        for name in ("remote", "local"):
            host.framework.dev_add(name)
        remote, local = host.framework.disk("remote"), host.framework.disk("local")
        remote.pwrite(b"a" * 4096, 0)
        server.stall()
        try:
            failed: list[OSError] = []

            def read() -> None:
                try:
                    remote.pread(4096, 0)
                except OSError as error:
                    failed.append(error)

            waiting = threading.Thread(target=read)
            waiting.start()
            local.pwrite(b"b" * 4096, 0)
            assert local.pread(4096, 0) == b"b" * 4096
            assert len(client.call("query-block-exports")) == 2
            # A reset takes the request away; the export goes though the server says nothing.
            host.framework.dev_del("remote")
            waiting.join()
            assert len(failed) == 1
            client.call("block-export-del", id="e0", mode="hard")
            local.pwrite(b"c" * 4096, 0)
            assert [each["id"] for each in client.call("query-block-exports")] == ["e1"]
        finally:
            server.go_on()
        assert local.pread(4096, 0) == b"c" * 4096
        client.call("blockdev-del", node_name="remote")
        host.framework.dev_del("local")
