"""The state of a storage daemon, as metrics, health and top get it: all of its exports and nodes,
while they come and go, and while a guest breaks its own."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.system.nbd_servers import qemu_nbd
from tests.system.stage import LogWatch
from tests.system.test_operating import LIMIT, health, scrape
from tests.system.test_storage_sockets import nbd_server, node, qemu_io, served, uri
from tests.system.vhost_user_driver import VhostUserDriver
from tests.system.vhost_user_stage import check_served
from tests.unit.qmp_client import QmpClient
from tests.waiting import eventually
from vduse.daemon.main import main
from vduse.daemon.watch.exposition import Metrics
from vduse.daemon.watch.health import Health, judge
from vduse.daemon.watch.state import State
from vduse.testing.rawdriver import RawDriver

MIB = 1 << 20


def asked(client: QmpClient, *, buckets: bool = False) -> State:
    return msgspec.convert(client.call("x-query-state", buckets=buckets), State)


def well(client: QmpClient) -> Health:
    return judge(asked(client), stuck_after=60)


def far_node(folder: Path) -> str:
    """A node on what qemu_nbd serves."""
    server = f"server.type=unix,server.path={folder}/qemu-nbd.sock"
    return f"--blockdev=nbd,node-name=far,open-timeout=60,{server}"


@pytest.mark.needs("qemu-io")
def test_all_exports_and_nodes_are_there(tmp_path: Path) -> None:
    with served(
        tmp_path,
        "--object=throttle-group,id=slow,limits.iops-total=100000",
        node(tmp_path),
        "--blockdev=throttle,node-name=held,throttle-group=slow,file=disk0",
        "--blockdev=null-co,node-name=nothing,size=1048576",
        nbd_server(tmp_path),
        "--export=nbd,id=e0,node-name=held,writable=on",
        f"--export=vhost-user-blk,id=e1,node-name=nothing,num-queues=2,"
        f"addr.type=unix,addr.path={tmp_path}/e1.sock",
    ) as client:
        qemu_io(uri(tmp_path, "held"), "write 0 4096", "flush", "read 0 512")
        state = asked(client, buckets=True)
        assert [each.node_name for each in state.nodes] == ["disk0", "held", "nothing"]
        assert {each.connection.state for each in state.nodes} == {"local"}
        first, second = state.exports
        assert (first.id, first.type, first.node_name, first.size) == ("e0", "nbd", "held", MIB)
        assert (first.live, first.read_only, first.broken) == (True, False, "")
        assert (second.type, second.live, second.queues) == ("vhost-user-blk", False, [])
        totals = dict.fromkeys(("read", "write", "flush", "discard", "other"), 0)
        for queue in first.queues:
            for kind, distribution in queue.latency_ns:
                totals[kind] += distribution.count
                assert sum(count for _, count in distribution.buckets) == distribution.count
        assert totals["write"] == totals["read"] == 1 and totals["flush"] >= 1
        assert sum(queue.bytes_written for queue in first.queues) == 4096
        process = state.process
        assert process.open_fds > 3 and process.threads > 1 and process.resident_bytes > MIB
        assert 0 < state.time - process.started < 1e6
        client.call("block-export-del", id="e0", mode="hard")
        assert [each.id for each in asked(client).exports] == ["e1"]


@pytest.mark.needs("qemu-nbd")
def test_a_server_that_dies_under_a_disk_without_a_guest_is_missed(tmp_path: Path) -> None:
    image = tmp_path / "remote.img"
    image.write_bytes(bytes(MIB))
    with (
        qemu_nbd(tmp_path, image) as server,
        served(
            tmp_path,
            far_node(tmp_path),
            f"--export=vhost-user-blk,id=e0,node-name=far,"
            f"addr.type=unix,addr.path={tmp_path}/e0.sock",
        ) as client,
    ):
        metrics = Metrics(lambda: asked(client, buckets=True))
        line = 'vduse_backend_connected{node="far"} '
        assert f"{line}1" in metrics.text("")[0].decode()
        server.kill()
        eventually(lambda: well(client).status == "degraded", "the server is gone")
        assert f"{line}0" in metrics.text("")[0].decode()
        server.start()
        eventually(lambda: well(client).status == "ok", "the server is back")
        assert f"{line}1" in metrics.text("")[0].decode()
        [far] = asked(client).nodes
        assert far.connection.reconnections == 1


@pytest.mark.needs("qemu-nbd")
def test_a_lost_server_is_the_nodes_and_of_no_other(tmp_path: Path) -> None:
    image = tmp_path / "remote.img"
    image.write_bytes(bytes(MIB))
    with (
        qemu_nbd(tmp_path, image) as server,
        served(
            tmp_path,
            node(tmp_path),
            far_node(tmp_path),
            "--blockdev=raw,node-name=over,file=far",
            nbd_server(tmp_path),
            "--export=nbd,id=e0,node-name=far",
        ) as client,
    ):
        assert well(client).status == "ok"
        server.kill()
        eventually(
            lambda: {each.subject for each in well(client).troubles} == {"far", "over"},
            "the server is gone",
        )
        assert well(client).status == "degraded"
        server.start()
        eventually(lambda: well(client).status == "ok", "the server is back")
        [_, far, over] = asked(client).nodes
        assert far.connection.reconnections == over.connection.reconnections >= 1


def test_looking_does_not_mind_what_comes_and_goes(tmp_path: Path) -> None:
    monitor = f"socket,id=watch,path={tmp_path}/watch.sock,server=on,wait=off"
    options = (nbd_server(tmp_path), f"--chardev={monitor}", "--monitor=watch")
    with (
        LogWatch(logging.ERROR) as log,
        served(tmp_path, node(tmp_path), *options) as client,
        QmpClient(f"{tmp_path}/watch.sock") as watcher,
    ):
        ended = threading.Event()
        metrics = Metrics(lambda: asked(watcher, buckets=True))

        def look() -> None:
            while not ended.is_set():
                metrics.text("")

        thread = threading.Thread(target=look)
        thread.start()
        try:
            for number in range(30):
                name = f"e{number}"
                client.call(
                    "blockdev-add", driver="null-co", node_name=f"n{number}", read_only=False
                )
                client.call(
                    "block-export-add", type="nbd", id=name, node_name=f"n{number}", name=name
                )
                client.call("block-export-del", id=name)
                client.call("blockdev-del", node_name=f"n{number}")
                assert thread.is_alive()
        finally:
            ended.set()
            thread.join()
        assert log.lines == []
        # None of them stays.
        assert asked(watcher).exports == []


@contextmanager
def guest(folder: Path, name: str) -> Iterator[RawDriver]:
    """A driver that is served at an export's socket."""
    driver = VhostUserDriver(f"{folder}/{name}.sock")
    with ExitStack() as exits:
        exits.callback(driver.hang_up)
        raw = RawDriver(driver, size=16)
        exits.callback(raw.close)
        exits.callback(driver.hang_up)  # before the memory goes
        assert raw.start()
        check_served(raw)
        yield raw


def test_a_device_that_its_guest_breaks_is_seen_and_the_other_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qmp = tmp_path / "qmp.sock"
    argv = [sys.executable, "-m", "vduse.daemon", "storage-daemon", "--json"]
    argv += [f"--chardev=socket,id=c,path={qmp},server=on,wait=off", "--monitor=c"]
    argv += [f"--metrics=unix:{tmp_path}/m.sock"]
    for name in ("bad", "good"):
        address = f"addr.type=unix,addr.path={tmp_path}/{name}.sock"
        export = f"vhost-user-blk,id={name},node-name={name},writable=on,{address}"
        argv += [node(tmp_path, name), f"--export={export}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as daemon, ExitStack() as exits:
        exits.callback(daemon.kill)
        assert daemon.stdout is not None
        assert b'"serving"' in daemon.stdout.readline()
        good = exits.enter_context(guest(tmp_path, "good"))
        with guest(tmp_path, "bad") as bad:
            assert health(capsys, qmp)[0] == 0
            bad.split.set_avail_index(0xFFFF)
            bad.kick()
            eventually(lambda: health(capsys, qmp)[0] == 1, "the device has stopped")
            [trouble] = health(capsys, qmp)[1]["troubles"]
            assert (trouble["kind"], trouble["subject"]) == ("broken", "bad")
            assert "serves nothing: virtqueue 0: malformed virtqueue: avail" in trouble["text"]
            assert scrape(tmp_path / "m.sock")["vduse_export_broken"] == 1
            assert main(["top", str(qmp), "--once", "--interval=0.1"]) == 0
            assert "bad: serves nothing: " in capsys.readouterr().out
            check_served(good)
        # As the advice says: its guest is started again.
        with guest(tmp_path, "bad"):
            assert health(capsys, qmp)[0] == 0
            assert scrape(tmp_path / "m.sock")["vduse_export_broken"] == 0
        daemon.terminate()
        assert daemon.wait(LIMIT) == 0
