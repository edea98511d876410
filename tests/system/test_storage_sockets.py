"""Exports of `vduse storage-daemon` at sockets, on the embedded framework: NBD and vhost-user."""

from __future__ import annotations

import errno
import gc
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.qmp_client import QmpClient
from tests.unit.test_storage_options import NoControl
from vduse.backends.layers import Faults, error
from vduse.bus.virtio_blk import VirtioBlk
from vduse.daemon.storage.daemon import Daemon, OptionError
from vduse.daemon.storage.nodes.null import NullNode
from vduse.framework.irq import Work, WorkQueue
from vduse.testing.leaks import Held

MIB = 1 << 20


@contextmanager
def served(folder: Path, *options: str) -> Iterator[QmpClient]:
    """A client of a daemon with these options, ``--name=text`` each. The kernel is not there."""
    monitor = f"socket,id=mon,path={folder}/qmp.sock,server=on,wait=off"
    split = [(name, text) for name, _, text in (o[2:].partition("=") for o in options)]
    daemon = Daemon(NoControl(), [*split, ("chardev", monitor), ("monitor", "mon")])
    try:
        with QmpClient(f"{folder}/qmp.sock") as client:
            yield client
    finally:
        daemon.close()


def node(folder: Path, name: str = "disk0") -> str:
    image = folder / f"{name}.img"
    with image.open("wb") as file:
        file.truncate(MIB)
    return f"--blockdev=file,filename={image},node-name={name}"


def nbd_server(folder: Path) -> str:
    return f"--nbd-server=addr.type=unix,addr.path={folder}/nbd.sock"


def uri(folder: Path, name: str) -> str:
    return f"nbd+unix:///{name}?socket={folder}/nbd.sock"


def nbd_info(folder: Path) -> dict[str, Any]:
    """By name."""
    asked = subprocess.run(
        ["nbdinfo", "--list", "--json", uri(folder, "")], capture_output=True, check=True
    )
    return {export["export-name"]: export for export in json.loads(asked.stdout)["exports"]}


def qemu_io(where: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    ran = subprocess.run(
        ["qemu-io", "-f", "raw", *words, where], capture_output=True, text=True, check=False
    )
    return ran.stdout + ran.stderr


@pytest.mark.needs("nbdinfo", "qemu-io")
def test_nbd_exports_are_found_by_name_at_one_server(tmp_path: Path) -> None:
    with served(
        tmp_path,
        node(tmp_path),
        node(tmp_path, "disk1"),
        nbd_server(tmp_path),
        "--export=nbd,id=e0,node-name=disk0,writable=on",
        "--export=nbd,id=e1,node-name=disk1,name=one,description=the other",
    ) as client:
        found = nbd_info(tmp_path)
        assert set(found) == {"disk0", "one"}
        assert found["one"]["description"] == "the other"
        assert (found["disk0"]["is_read_only"], found["one"]["is_read_only"]) == (False, True)
        qemu_io(uri(tmp_path, "disk0"), "write -P 7 4096 4096", "flush")
        assert (tmp_path / "disk0.img").read_bytes()[4096:8192] == b"\7" * 4096
        [stats, _] = client.call("query-blockstats")
        assert stats["stats"]["wr_bytes"] == 4096
        assert "no export" in qemu_io(uri(tmp_path, "two"), "read 0 512")


@pytest.mark.needs("nbdinfo")
def test_nbd_exports_and_their_server_come_and_go(tmp_path: Path) -> None:
    with served(tmp_path, node(tmp_path)) as client:
        export = {"type": "nbd", "id": "e0", "node-name": "disk0"}
        assert client.refusal("block-export-add", **export) == "NBD server not running"
        address = {"type": "unix", "data": {"path": f"{tmp_path}/nbd.sock"}}
        client.call("nbd-server-start", addr=address)
        assert client.refusal("nbd-server-start", addr=address) == "NBD server already running"
        assert nbd_info(tmp_path) == {}
        client.call("block-export-add", **export)
        again = client.refusal("block-export-add", **{**export, "id": "e1"})
        assert again == "NBD server already has export named 'disk0'"
        assert set(nbd_info(tmp_path)) == {"disk0"}
        client.call("block-export-del", id="e0")
        assert nbd_info(tmp_path) == {}
        client.call("block-export-add", **export)
        client.call("nbd-server-stop")
        assert client.call("query-block-exports") == []
        assert not (tmp_path / "nbd.sock").exists()
        client.call("blockdev-del", node_name="disk0")


@pytest.mark.needs("nbdinfo")
def test_nbd_at_a_tcp_port(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with served(tmp_path, node(tmp_path)) as client:
        address = {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}}
        client.call("nbd-server-start", addr=address)
        client.call("block-export-add", type="nbd", id="e0", node_name="disk0")
        where = f"nbd://127.0.0.1:{port}/disk0"
        asked = subprocess.run(["nbdinfo", "--size", where], capture_output=True, text=True)
        assert asked.stdout == f"{MIB}\n"


@pytest.mark.needs("nbdinfo")
def test_a_resize_is_seen_by_the_next_nbd_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The driver looks at its config space on a thread of the framework's: here it does so when it
    # is waited for, and no sooner.
    waited_for, read_config, flush = threading.Event(), VirtioBlk._read_config, WorkQueue.flush

    def read_late(driver: VirtioBlk) -> bytes:
        assert waited_for.wait(60)
        return read_config(driver)

    def flushing(queue: WorkQueue, work: Work) -> None:
        waited_for.set()
        flush(queue, work)

    with served(
        tmp_path, node(tmp_path), nbd_server(tmp_path), "--export=nbd,id=e0,node-name=disk0"
    ) as client:
        monkeypatch.setattr(VirtioBlk, "_read_config", read_late)
        monkeypatch.setattr(WorkQueue, "flush", flushing)
        client.call("block_resize", node_name="disk0", size=2 * MIB)
        assert nbd_info(tmp_path)["disk0"]["export-size"] == 2 * MIB
        waited_for.clear()
        other = tmp_path / "other.img"
        other.write_bytes(bytes(3 * MIB))
        reopened = {"driver": "file", "node-name": "disk0", "filename": str(other)}
        client.call("blockdev-reopen", options=[reopened])
        assert nbd_info(tmp_path)["disk0"]["export-size"] == 3 * MIB


def test_vhost_user_is_of_unix_sockets(tmp_path: Path) -> None:
    export = "--export=type=vhost-user-blk,id=e,node-name=disk0,addr.type=inet"
    with (
        pytest.raises(OptionError, match=r"'addr\.type' does not accept value 'inet'"),
        served(tmp_path, node(tmp_path), f"{export},addr.host=localhost,addr.port=1"),
    ):
        pass


def test_vhost_user_exports_come_and_go(tmp_path: Path) -> None:
    export = "type=vhost-user-blk,id=e0,node-name=disk0,addr.type=unix,addr.path="
    path = tmp_path / "vhost.sock"
    with served(tmp_path, node(tmp_path), f"--export={export}{path},num-queues=2") as client:
        assert path.is_socket()
        client.call("block-export-del", id="e0")
        assert not path.exists()
        address = {"type": "unix", "path": str(path)}
        options = {"type": "vhost-user-blk", "id": "e0", "node-name": "disk0", "addr": address}
        client.call("block-export-add", **options)
        assert path.is_socket()
        taken = client.refusal("block-export-add", **{**options, "id": "e1"})
        assert "another server listens there" in taken
        # What was begun of it is gone again.
        client.call(
            "block-export-add", **{**options, "id": "e1", "addr": {**address, "path": f"{path}2"}}
        )
    assert not path.exists()


@pytest.mark.needs("qemu-io")
def test_a_throttle_node_holds_its_exports_to_limits_that_change_live(tmp_path: Path) -> None:
    with served(
        tmp_path,
        "--object=throttle-group,id=tg0,limits.iops-total=1",
        node(tmp_path),
        "--blockdev=throttle,node-name=slow,throttle-group=tg0,file=disk0",
        nbd_server(tmp_path),
        "--export=nbd,id=e0,node-name=slow,writable=on",
    ) as client:
        group = {"path": "/objects/tg0", "property": "limits"}
        assert client.call("qom-get", **group)["iops-total"] == 1
        # At one a second these would take most of an hour.
        client.call("qom-set", **group, value={"iops-total": 1_000_000})
        reads = [f"read {at * 512} 512" for at in range(2000)]
        assert qemu_io(uri(tmp_path, "slow"), *reads).count("read 512/512") == 2000
        assert client.call("qom-get", **group)["iops-total"] == 1_000_000
        wrong = client.refusal("qom-set", **group, value={"iops-totl": 1})
        assert "'iops-totl' is unexpected, did you mean 'iops-total'" in wrong
        again = client.refusal("object-add", qom_type="throttle-group", id="tg0")
        assert again.endswith("there is an object of that id")


@pytest.mark.needs("nbdinfo")
def test_a_throttle_node_lies_beside_other_users_of_its_child(tmp_path: Path) -> None:
    export = {"type": "nbd", "id": "e0", "node-name": "disk0"}
    throttle = {"driver": "throttle", "throttle-group": "tg0", "file": "disk0"}
    with served(
        tmp_path, "--object=throttle-group,id=tg0", node(tmp_path), nbd_server(tmp_path)
    ) as client:
        client.call("block-export-add", **export)
        client.call("blockdev-add", **throttle, node_name="a")
        client.call("blockdev-add", **throttle, node_name="b")
        desc = "Block device disk0 is in use: by a"
        assert client.refusal("blockdev-del", node_name="disk0") == desc
        in_use = client.refusal("object-del", id="tg0")
        assert in_use == "object 'tg0' is in use, can not be deleted: by a"
        client.call("block_resize", node_name="a", size=2 * MIB)
        sizes = [info["image"]["virtual-size"] for info in client.call("query-named-block-nodes")]
        assert sizes == [2 * MIB] * 3
        client.call("blockdev-del", node_name="a")
        # The others go on without it.
        assert nbd_info(tmp_path)["disk0"]["export-size"] == 2 * MIB
        client.call("block-export-add", type="nbd", id="e1", node_name="b")
        assert nbd_info(tmp_path)["b"]["export-size"] == 2 * MIB


def test_nodes_within_nodes_end_with_them(tmp_path: Path) -> None:
    image = node(tmp_path).partition("filename=")[2].partition(",")[0]
    deep = {
        "driver": "throttle",
        "node-name": "top",
        "throttle-group": "tg0",
        "file": {"driver": "raw", "file": {"driver": "file", "filename": image}},
    }
    with served(tmp_path, "--object=throttle-group,id=tg0") as client:
        for _ in range(2):
            client.call("blockdev-add", **deep)
            names = [info["node-name"] for info in client.call("query-named-block-nodes")]
            assert names == ["##top", "#top", "top"]
            client.call("blockdev-del", node_name="top")
            assert client.call("query-named-block-nodes") == []


def test_a_node_that_nothing_uses_is_opened_anew(tmp_path: Path) -> None:
    with served(tmp_path, node(tmp_path), nbd_server(tmp_path)) as client:
        options = {"driver": "file", "filename": f"{tmp_path}/disk0.img", "node-name": "disk0"}
        client.call("blockdev-reopen", options=[{**options, "read-only": True}])
        [info] = client.call("query-named-block-nodes")
        assert info["ro"]
        client.call("block-export-add", type="nbd", id="e0", node_name="disk0")
        client.call("blockdev-reopen", options=[{**options, "read-only": True}])  # as it is
        client.call("block-export-del", id="e0")
        missing = {**options, "filename": f"{tmp_path}/none"}
        assert "No such file" in client.refusal("blockdev-reopen", options=[missing])
        [info] = client.call("query-named-block-nodes")
        assert info["ro"]
        other = client.refusal(
            "blockdev-reopen", options=[{"driver": "null-co", "node-name": "disk0"}]
        )
        assert other == "Cannot change the option 'driver' of 'disk0'"


@pytest.mark.needs("qemu-io")
def test_a_client_hears_of_a_node_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults()
    faults.add(errno.EIO, ops=["write"])
    open_backend = NullNode.open_backend
    monkeypatch.setattr(NullNode, "open_backend", lambda node: error(open_backend(node), faults))
    with served(
        tmp_path,
        "--blockdev=null-co,node-name=n",
        nbd_server(tmp_path),
        "--export=nbd,id=e,node-name=n,writable=on",
    ) as client:
        assert "Input/output error" in qemu_io(uri(tmp_path, "n"), "write 4096 512")
        event = client.answer()
        assert event["event"] == "BLOCK_IO_ERROR"
        assert event["data"] == {
            "device": "e",
            "node-name": "n",
            "operation": "write",
            "action": "report",
            "reason": "write of 512 bytes at 4096: Input/output error (os error 5)",
        }


def test_a_file_that_a_node_has_already(tmp_path: Path) -> None:
    with served(tmp_path, node(tmp_path)) as client:
        second = {"driver": "file", "filename": f"{tmp_path}/disk0.img", "node_name": "b"}
        refusal = client.refusal("blockdev-add", **second)
    assert refusal.endswith(
        "stop that program first, or remove the node of this daemon that has it"
    )


@pytest.mark.parametrize(
    ("option", "desc"),
    [
        ("--object=throttle-group,id=t,limits.iops-total-max=1", "bps_max/iops_max require"),
        (
            "--object=throttle-group,id=t,limits.iops-total=2,limits.iops-total-max=1",
            "be lower",
        ),
        ("--object=throttle-group,id=t,limits.bps-total=1,limits.bps-read=1", "at the same time"),
        ("--object=throttle-group,id=t,limits.iops-total=-1", "must be within [0, "),
        ("--object=throttle-grup,id=t", "did you mean 'throttle-group'?"),
        ("--object=throttle-group,id=0", "expects an identifier"),
        ("--object=secret,id=s", "'file' or 'data' must be provided"),
        ("--object=secret,id=s,data=x,file=y", "mutually exclusive"),
        ("--object=secret,id=s,file=/none", "No such file or directory"),
        ("--object=secret,id=s,data=x,format=base64", "secret 's': invalid base64 data"),
        ("--object=tls-creds-x509,id=t,dir=/none", "Unable to access credentials /none/ca-cert"),
        ("--blockdev=throttle,node-name=n,throttle-group=no,file=disk0", "'no' does not exist"),
        ("--nbd-server=unix,path=x", "Expected '=' after parameter 'unix'"),
        ("--nbd-server=addr.type=inet,addr.host=h", "Parameter 'addr.port' is missing"),
        (
            "--nbd-server=addr.type=inet,addr.host=::1,addr.port=x-",
            "no port x-; ports are from 1 to 65535",
        ),
        ("--nbd-server=addr.type=unix,addr.path=/none/x", "no such directory"),
        ("--nbd-server=addr.type=unix,addr.path=x,max-connections=-1", "'max-connections' expects"),
        ("--export=nbd,id=e,node-name=disk0", "NBD server not running"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, option: str, desc: str) -> None:
    with pytest.raises(OptionError) as refused, served(tmp_path, node(tmp_path), option):
        pass
    assert desc in str(refused.value)


def test_exports_that_come_and_go_leave_nothing(tmp_path: Path) -> None:
    """Fds and threads, after the first round has made what stays."""
    address = {"type": "unix", "path": f"{tmp_path}/vhost.sock"}
    with served(tmp_path, "--object=throttle-group,id=g", nbd_server(tmp_path)) as client:
        for number in range(20):
            client.call("blockdev-add", driver="null-co", node_name="n", size=MIB)
            filtered = {"driver": "throttle", "throttle-group": "g", "file": "n"}
            client.call("blockdev-add", **filtered, node_name="t")
            client.call("block-export-add", type="nbd", id="a", node_name="t")
            vhost = {"type": "vhost-user-blk", "num-queues": 2, "addr": address}
            client.call("block-export-add", **vhost, id="b", node_name="t")
            for name in ("a", "b"):
                client.call("block-export-del", id=name)
            for name in ("t", "n"):
                client.call("blockdev-del", node_name=name)
            if number == 0:
                gc.collect()  # what tests before this one have left
                before = Held.now()
        assert before.new() == []


@pytest.mark.parametrize("passed", [False, True], ids=["path", "fd"])
def test_a_driver_on_a_vhost_user_export(passed: bool, tmp_path: Path) -> None:
    path = f"{tmp_path}/vhost.sock"
    with ExitStack() as exits:
        address = f"addr.type=unix,addr.path={path}"
        if passed:  # by whoever started the daemon
            listener = exits.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen()
            address = f"addr.type=fd,addr.str={listener.fileno()}"
        _drive(tmp_path, path, f"type=vhost-user-blk,id=e,node-name=disk0,{address}")


def _drive(tmp_path: Path, path: str, export: str) -> None:
    with served(tmp_path, node(tmp_path), f"--export={export},writable=on,num-queues=2") as client:
        short = ("--seconds", "0.05", "--rounds", "2", "--span", "1M", "--json")
        ran = subprocess.run(
            [sys.executable, "-m", "vduse.daemon", "bench", path, *short], capture_output=True
        )
        assert ran.returncode == 0, ran.stderr
        [counted] = client.call("query-blockstats")
        assert counted["stats"]["rd_operations"] > 0
        assert counted["stats"]["failed_operations"] == 0
        # That the driver has gone may not have been seen yet.
        client.call("block-export-del", id="e", mode="hard")
