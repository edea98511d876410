"""`driver=rbd` of `vduse storage-daemon`: keys, secrets, snapshots, locks, sizes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ceph.cluster import POOL, Cluster
from tests.ceph.daemon import blockdev
from tests.system.nbd_clients import run_json
from tests.unit.qmp_client import QmpClient
from tests.unit.test_storage_options import NoControl
from vduse.daemon.storage.daemon import Daemon, OptionError

pytestmark = [
    pytest.mark.needs("ceph-mon", "ceph-osd", "rbd", "system-python", "qemu-io"),
    pytest.mark.timeout(300),
]

MIB = 1 << 20


@contextmanager
def served(folder: Path, *options: str) -> Iterator[QmpClient]:
    """A client of a daemon with an NBD server and these options, ``--name=text`` each."""
    folder.mkdir(exist_ok=True)
    split = [(name, text) for name, _, text in (o[2:].partition("=") for o in options)]
    split += [
        ("nbd-server", f"addr.type=unix,addr.path={folder}/nbd.sock"),
        ("chardev", f"socket,id=mon,path={folder}/qmp.sock,server=on,wait=off"),
        ("monitor", "mon"),
    ]
    daemon = Daemon(NoControl(), split)
    try:
        with QmpClient(f"{folder}/qmp.sock") as client:
            yield client
    finally:
        daemon.close()


def node(cluster: Cluster, image: str, **keys: Any) -> dict[str, Any]:
    """blockdev-add's arguments; the node is called as the image."""
    named = {key.replace("_", "-"): value for key, value in keys.items()}
    common = {"driver": "rbd", "node-name": image, "pool": POOL, "image": image}
    return common | {"conf": str(cluster.conf)} | named


def qemu_io(folder: Path, name: str, *commands: str) -> int:
    """Its exit status, on an NBD export."""
    words = [word for command in commands for word in ("-c", command)]
    how = ["-r"] if all(command.startswith("read") for command in commands) else []
    uri = f"nbd+unix:///{name}?socket={folder}/nbd.sock"
    ran = subprocess.run(
        ["qemu-io", *how, "-f", "raw", *words, uri], capture_output=True, check=False
    )
    return ran.returncode


def export(client: QmpClient, name: str, **more: object) -> None:
    client.call("block-export-add", id=name, type="nbd", node_name=name, **more)


def test_a_snapshot_is_exported_as_it_was(cluster: Cluster, tmp_path: Path) -> None:
    cluster.image("then")
    with served(tmp_path) as client:
        client.call("blockdev-add", **node(cluster, "then"))
        export(client, "then", writable=True)
        assert qemu_io(tmp_path, "then", "write -P 5 0 1M", "flush") == 0
        cluster.rbd("snap", "create", f"{POOL}/then@monday")
        assert qemu_io(tmp_path, "then", "write -P 6 0 1M", "flush") == 0
        monday = node(cluster, "then", snapshot="monday") | {"node-name": "monday"}
        assert client.refusal("blockdev-add", **monday) == "rbd snapshots are read-only"
        client.call("blockdev-add", **monday, auto_read_only=True)
        export(client, "monday")
        assert qemu_io(tmp_path, "monday", "read -P 5 0 1M") == 0
        assert qemu_io(tmp_path, "monday", "write -P 7 0 1M") != 0
        assert qemu_io(tmp_path, "then", "read -P 6 0 1M") == 0
        shown = {each["node-name"]: each for each in client.call("query-named-block-nodes")}
        assert (shown["then"]["ro"], shown["monday"]["ro"]) == (False, True)
        assert '"snapshot": "monday"' in shown["monday"]["file"]


@pytest.mark.needs("nbdinfo")
def test_objects_that_are_not_there_are_holes(cluster: Cluster, tmp_path: Path) -> None:
    """As `rbd diff` lists them, while the image is written, and of a snapshot as of then."""
    cluster.image("holes", "64M")
    with served(tmp_path) as client:
        client.call("blockdev-add", **node(cluster, "holes"))
        export(client, "holes", writable=True)
        assert data(tmp_path, "holes") == []
        assert qemu_io(tmp_path, "holes", "write 9M 64k", "write 60M 4k", "flush") == 0
        first = data(tmp_path, "holes")
        assert first == [(8 * MIB, 4 * MIB), (60 * MIB, 4 * MIB)]
        cluster.rbd("snap", "create", f"{POOL}/holes@then")
        assert qemu_io(tmp_path, "holes", "write 31M 2M", "write 0 512", "flush") == 0
        then = node(cluster, "holes", snapshot="then", read_only=True) | {"node-name": "then"}
        client.call("blockdev-add", **then)
        export(client, "then")
        assert data(tmp_path, "then") == listed(cluster, "holes@then") == first
        assert data(tmp_path, "holes") == listed(cluster, "holes") != first


def data(folder: Path, name: str) -> list[tuple[int, int]]:
    """Where an export says that its disk has data: offset and length, neighbours as one."""
    uri = f"nbd+unix:///{name}?socket={folder}/nbd.sock"
    found = run_json("nbdinfo", "--json", "--map", uri)
    return joined((at["offset"], at["length"]) for at in found if at["description"] == "data")


def listed(cluster: Cluster, image: str) -> list[tuple[int, int]]:
    """Which objects of an image there are, by Ceph's own tool."""
    words = ("--whole-object", "--format", "json")
    found = json.loads(cluster.rbd("diff", f"{POOL}/{image}", *words))
    return joined((at["offset"], at["length"]) for at in found)


def joined(pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces that follow each other are one."""
    whole: list[tuple[int, int]] = []
    for offset, length in pieces:
        if whole and sum(whole[-1]) == offset:
            length += offset - whole[-1][0]
            offset, _ = whole.pop()
        whole.append((offset, length))
    return whole


def test_an_image_locked_elsewhere_is_refused_or_taken_over(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Who has lost it fails its requests, and serves on what else it has."""
    cluster.image("taken")
    null = "--blockdev=null-co,node-name=other"
    with served(tmp_path / "a", null) as first, served(tmp_path / "b") as second:
        first.call("blockdev-add", **node(cluster, "taken"))
        export(first, "taken", writable=True)
        export(first, "other", writable=True)
        assert qemu_io(tmp_path / "a", "taken", "write -P 1 0 64k", "flush") == 0
        refusal = second.refusal("blockdev-add", **node(cluster, "taken"))
        assert "has its lock" in refusal
        assert "lock=break" in refusal
        second.call("blockdev-add", **node(cluster, "taken", lock="break"))
        export(second, "taken", writable=True)
        assert qemu_io(tmp_path / "b", "taken", "read -P 1 0 64k", "write -P 2 0 64k") == 0
        assert qemu_io(tmp_path / "a", "taken", "write -P 3 0 64k") != 0
        assert qemu_io(tmp_path / "a", "other", "write -P 3 0 64k") == 0
        assert len(first.call("query-block-exports")) == 2
        assert qemu_io(tmp_path / "b", "taken", "read -P 2 0 64k") == 0


def test_a_node_is_resized_from_here(cluster: Cluster, tmp_path: Path) -> None:
    cluster.image("sized", "8M")
    with served(tmp_path) as client:
        client.call("blockdev-add", **node(cluster, "sized"))
        export(client, "sized", writable=True)
        client.call("block_resize", node_name="sized", size=16 * MIB)
        [shown] = client.call("query-named-block-nodes")
        assert shown["image"]["virtual-size"] == 16 * MIB
        assert f"size {16 * MIB >> 20} MiB" in cluster.rbd("info", f"{POOL}/sized")
        assert qemu_io(tmp_path, "sized", "write -P 4 12M 64k", "read -P 4 12M 64k") == 0


def test_a_secret_and_monitors_in_place_of_a_configuration(
    cluster: Cluster, tmp_path: Path
) -> None:
    """QEMU's spelling on the command line: the secret's bytes, which base64 shows."""
    cluster.image("private2")
    key = cluster.user("node")
    port = cluster.ports()[0]
    blank = tmp_path / "empty.conf"
    blank.touch()
    with served(
        tmp_path,
        f"--object=secret,id=key,data={key},format=base64",
        f"--blockdev=rbd,node-name=n,pool={POOL},image=private2,user=node,key-secret=key,"
        f"conf={blank},server.0.host=127.0.0.1,server.0.port={port},auth-client-required.0=cephx",
    ) as client:
        client.call("blockdev-del", node_name="n")
        client.call("object-del", id="key")


def test_mistakes_are_named(cluster: Cluster, tmp_path: Path) -> None:
    def refused(more: str) -> str:
        option = "--blockdev=" + blockdev(cluster, "none", more=more)
        with pytest.raises(OptionError) as error, served(tmp_path, option):
            pass
        return str(error.value)

    assert "no such image" in refused("")
    assert "Parameter 'encrypt' is unexpected" in refused(",encrypt.format=luks")
    assert "No secret with id 'k'" in refused(",key-secret=k")
    assert "'lock' does not accept value 'steal'" in refused(",lock=steal")
    assert "'reconnect-delay' is for on-error=report" in refused(",reconnect-delay=5")
    assert "'server.0.port' is missing" in refused(",server.0.host=a")
    assert "'server', expected: array" in refused(",server.1.host=a,server.1.port=1")
