"""blockdev-reopen of nodes that are in use: what their users see is that they go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.system.nbd_clients import JOBS, fio_verified
from tests.system.storage_churn import Load
from tests.system.test_storage_sockets import nbd_info, nbd_server, node, qemu_io, served, uri
from tests.unit.qmp_client import TIMEOUT, QmpClient
from tests.waiting import eventually
from vduse import _native
from vduse.backends.python import PythonBackend
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports import export as exports
from vduse.daemon.storage.nodes.file import FileNode
from vduse.daemon.storage.nodes.null import NullNode
from vduse.devices.blk import BlkDevice

MIB = 1 << 20
#: Of nodes under load.
ROUNDS = 20
GROUP = "--object=throttle-group,id=g,limits.iops-total=1000000"


def file_node(folder: Path, **others: object) -> dict[str, object]:
    return {"driver": "file", "node-name": "f", "filename": f"{folder}/f.img", **others}


def raw_node(child: str, **others: object) -> dict[str, object]:
    return {"driver": "raw", "node-name": "r", "file": child, **others}


THROTTLE = {"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "f"}


@contextmanager
def on_file(folder: Path, size: int = MIB) -> Iterator[QmpClient]:
    """The file node ``f``, the raw node ``r`` on it, the NBD export ``e`` of that."""
    with (folder / "f.img").open("wb") as file:
        file.truncate(size)
    with served(
        folder,
        GROUP,
        nbd_server(folder),
        f"--blockdev=file,node-name=f,filename={folder}/f.img",
        "--blockdev=raw,node-name=r,file=f",
        "--export=nbd,id=e,node-name=r,writable=on",
    ) as client:
        yield client


def nodes(client: QmpClient) -> dict[str, Any]:
    """What is known of all, by name."""
    return {each["node-name"]: each for each in client.call("query-named-block-nodes")}


def reopen(client: QmpClient, *options: dict[str, object]) -> None:
    client.call("blockdev-reopen", options=options)


@pytest.mark.needs("fio")
def test_nothing_is_lost_while_options_and_filters_come_and_go(tmp_path: Path) -> None:
    """fio checks what it wrote, at depth 32, as long as it takes."""
    is_over = threading.Event()

    def load() -> int:
        rounds = 0
        while not is_over.is_set():
            found = fio_verified(uri(tmp_path, "r"), tmp_path, bs="4k", size="4m")
            assert found.error == 0
            assert found.written == found.read == JOBS * 1024
            rounds += 1
        return rounds

    with on_file(tmp_path, 16 * MIB) as client, ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(load)
        written = 0
        try:
            for _ in range(ROUNDS):
                written = eventually(partial(_more_written, client, written), "fio writes")
                direct = {"cache": {"direct": True}}
                reopen(client, file_node(tmp_path, **direct))
                reopen(client, file_node(tmp_path, **direct, aio="native"))
                client.call("blockdev-add", **THROTTLE)
                reopen(client, raw_node("t"))
                reopen(client, file_node(tmp_path))
                reopen(client, raw_node("f"))
                client.call("blockdev-del", node_name="t")
        finally:
            is_over.set()
        assert loaded.result() > 0


def _more_written(client: QmpClient, before: int) -> int:
    """Requests to ``r`` by now; 0: no more than before."""
    stats = {each["node-name"]: each["stats"] for each in client.call("query-blockstats")}
    now = int(stats["r"]["wr_operations"])
    return now if now > before else 0


def test_a_virtual_machines_requests_go_on_through_a_hundred_exchanges(tmp_path: Path) -> None:
    null = {"driver": "null-co", "node-name": "f", "size": 64 * MIB}
    with served(tmp_path, GROUP) as client:
        client.call("blockdev-add", **null)
        client.call("blockdev-add", **THROTTLE)
        client.call("blockdev-add", **raw_node("f"))
        address = {"type": "unix", "path": f"{tmp_path}/vm.sock"}
        client.call("block-export-add", type="vhost-user-blk", id="e", node_name="r", addr=address)
        load = Load(address["path"], 32)
        try:
            for round_ in range(100):
                reopen(client, raw_node("tf"[round_ % 2]))
                if round_ % 10 == 0:
                    reopen(client, {**null, "latency-ns": 1000 * (round_ + 1)})
        finally:
            load.end()
        assert load.rounds
        client.call("block-export-del", id="e", mode="hard")


@pytest.mark.needs("qemu-io")
def test_what_cannot_be_leaves_all_as_it_was(tmp_path: Path) -> None:
    with on_file(tmp_path) as client:
        client.call("blockdev-add", **THROTTLE)
        # The image of a guest that writes to it.
        assert "wrote 512/512" in qemu_io(uri(tmp_path, "r"), "write -P 7 512 512")
        before = nodes(client)
        raw, file, direct = raw_node("f"), partial(file_node, tmp_path), {"cache": {"direct": True}}
        missing = file(filename=f"{tmp_path}/none")
        refusals: list[tuple[Sequence[dict[str, object]], str]] = [
            ([missing], f"Could not open '{tmp_path}/none': No such file or directory"),
            ([raw_node("f", size=512), missing], "No such file or directory"),
            ([missing, raw_node("f", size=512)], "No such file or directory"),
            ([file(aio="native")], "aio=native was specified, but it requires cache.direct=on"),
            ([raw_node("f", offset=MIB)], "a disk of 0 bytes"),
            ([raw_node("f", offset=1)], "an offset of 1 bytes: no multiple of 512"),
            ([{**THROTTLE, "throttle-group": "none"}], "'none' does not exist"),
            ([raw_node("none")], "nor node-name='none'"),
            ([file(**direct), raw_node("none")], "nor node-name='none'"),
            ([raw_node("r")], "Making 'r' a file child of 'r' would create a cycle"),
            ([{**THROTTLE, "file": "r"}, raw_node("t")], "would create a cycle"),
            ([raw, raw_node("t")], "Node 'r' is given twice"),
            ([file(driver="host_device")], "Cannot change the option 'driver' of 'f'"),
            ([{**raw, "file": {"driver": "file", "filename": "x", "node-name": "t"}}], "Duplicate"),
        ]
        for name, options in (("f", file(read_only=True)), ("r", raw_node("f", read_only=True))):
            options["read-only"] = options.pop("read_only")
            why = f"Read-only block node '{name}' cannot support read-write users: export 'e'"
            refusals.append(([options], why))
            # One that could be, and is not.
            refusals.append(([{**THROTTLE, "discard": "unmap"}, options], why))
        for options_, why in refusals:
            assert why in client.refusal("blockdev-reopen", options=options_)
            assert nodes(client) == before, why
            assert "read 512/512" in qemu_io(uri(tmp_path, "r"), "read -P 7 512 512"), why
        for hostile in (None, 1, "f", {}, [1], [None], [[]], [{}], [{"driver": "file"}]):
            assert "error" in client.execute("blockdev-reopen", options=hostile)
        reopen(client)
        reopen(client, file(), raw)  # as they are
        assert nodes(client) == before


def test_a_node_of_another_size_is_told_of(tmp_path: Path) -> None:
    with on_file(tmp_path) as client:
        with (tmp_path / "larger.img").open("wb") as file:
            file.truncate(3 * MIB)
        reopen(client, file_node(tmp_path, filename=f"{tmp_path}/larger.img"))
        assert nodes(client)["r"]["image"]["virtual-size"] == 3 * MIB
        assert "wrote 512/512" in qemu_io(uri(tmp_path, "r"), f"write -P 7 {2 * MIB} 512")
        reopen(client, raw_node("f", offset=2 * MIB, size=4096))
        assert "read 512/512" in qemu_io(uri(tmp_path, "r"), "read -P 7 0 512")
        assert nbd_info(tmp_path)["r"]["export-size"] == 4096


def test_the_page_cache_may_be_turned_off_and_on_beneath_a_node_that_has_it_within(
    tmp_path: Path,
) -> None:
    image = node(tmp_path, "f")
    with served(
        tmp_path,
        GROUP,
        nbd_server(tmp_path),
        image.replace(
            "--blockdev=file,", "--blockdev=raw,node-name=r,file.driver=file,file."
        ).replace(",node-name=f", ",file.node-name=f"),
        "--export=nbd,id=e,node-name=r,writable=on",
    ) as client:
        reopen(client, file_node(tmp_path, cache={"direct": True}))
        assert nodes(client)["f"]["cache"]["direct"]
        reopen(client, raw_node("f", discard="unmap"))
        assert nodes(client)["f"]["cache"]["direct"]
        # Put above what was within, a filter keeps that from its end.
        client.call("blockdev-add", **THROTTLE)
        reopen(client, raw_node("t"))
        assert set(nodes(client)) == {"f", "r", "t"}
        reopen(client, raw_node("f"))
        client.call("blockdev-del", node_name="t")
        client.call("block-export-del", id="e")
        client.call("blockdev-del", node_name="r")
        client.call("blockdev-del", node_name="f")


class Stuck(PythonBackend):
    """Reads wait for the test."""

    size = MIB

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def read(self, offset: int, buffer: memoryview) -> None:
        self.reached.set()
        self.open.wait(TIMEOUT)
        buffer[:] = bytes([7]) * len(buffer)

    def write(self, offset: int, buffer: memoryview) -> None:
        pass


@pytest.mark.needs("qemu-io")
def test_requests_that_do_not_end_keep_a_node_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck()
    monkeypatch.setattr(NullNode, "open_backend", lambda _: stuck.native)
    monkeypatch.setattr(exports, "BlkDevice", partial(BlkDevice, drain_timeout=0.1))
    with (
        ThreadPoolExecutor(1) as pool,
        served(
            tmp_path,
            nbd_server(tmp_path),
            "--blockdev=null-co,node-name=f",
            "--blockdev=raw,node-name=r,file=f",
            "--export=nbd,id=e,node-name=r,writable=on",
        ) as client,
    ):
        read = pool.submit(qemu_io, uri(tmp_path, "r"), "read -P 7 0 512")
        assert stuck.reached.wait(TIMEOUT)
        options = raw_node("f", offset=512)
        refusal = client.refusal("blockdev-reopen", options=[options])
        assert refusal == "export 'e': e: requests are still in flight after 0.1 s"
        assert set(nodes(client)) == {"f", "r"}
        stuck.open.set()
        assert "read 512/512" in read.result()
        monkeypatch.setattr(exports, "BlkDevice", BlkDevice)
        reopen(client, options)


def failing(opened: Callable[[FileNode], _native.Backend]) -> Callable[[FileNode], Any]:
    """Opens no file a second time."""
    seen: set[str] = set()

    def open_backend(node: FileNode) -> _native.Backend:
        if node.name in seen:
            raise QmpError(f"Could not open '{node.name}.img': gone")
        seen.add(node.name)
        return opened(node)

    return open_backend


def test_a_node_that_cannot_be_opened_again_either_way_ends_with_its_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileNode, "open_backend", failing(FileNode.open_backend))
    with on_file(tmp_path) as client:
        client.call("blockdev-add", driver="null-co", node_name="other")
        client.call("block-export-add", type="nbd", id="o", node_name="other")
        refusal = client.refusal("blockdev-reopen", options=[file_node(tmp_path, discard="unmap")])
        gone = "Could not open 'f.img': gone"
        assert refusal == (
            f"{gone}; nor could it be as before: {gone}; "
            "these nodes and their exports have ended: 'f', 'r'"
        )
        assert set(nodes(client)) == {"other"}
        assert [export["id"] for export in client.call("query-block-exports")] == ["o"]
        assert set(nbd_info(tmp_path)) == {"other"}


def test_a_file_that_has_gone_is_not_let_go_of(tmp_path: Path) -> None:
    """What is written to it would be lost."""
    with on_file(tmp_path) as client:
        (tmp_path / "f.img").rename(tmp_path / "moved.img")
        options = file_node(tmp_path, cache={"direct": True})
        refusal = client.refusal("blockdev-reopen", options=[options])
        assert refusal == f"Could not open '{tmp_path}/f.img': No such file or directory"
        (tmp_path / "f.img").write_bytes(bytes(MIB))
        refusal = client.refusal("blockdev-reopen", options=[options])
        assert refusal == f"'{tmp_path}/f.img' is another file than the node's by now"
        assert "wrote 512/512" in qemu_io(uri(tmp_path, "r"), "write -P 7 512 512")
    assert (tmp_path / "moved.img").read_bytes()[512:1024] == bytes([7]) * 512
