"""The same requests to QEMU's storage daemon and to ours: the same answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.qmp_client import QmpClient
from vduse.channel.embedded import EmbeddedControl
from vduse.daemon.storage.daemon import Daemon
from vduse.framework import Framework

pytestmark = pytest.mark.needs("qemu-storage-daemon")

_NODE = "driver=file,filename=disk.img,node-name=f"


def _listening(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        return os.dup(listener.fileno())


@contextmanager
def _qemu(path: str) -> Iterator[None]:
    fd = _listening(path)
    with subprocess.Popen(
        [
            *("qemu-storage-daemon", "--chardev", f"socket,id=c,fd={fd},server=on,wait=off"),
            *("--monitor", "c", "--blockdev", _NODE),
        ],
        pass_fds=[fd],
    ) as process:
        os.close(fd)
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def _ours(path: str) -> Iterator[None]:
    with Framework() as framework:
        control = EmbeddedControl(framework.control())
        fd = _listening(path)
        chardev = f"socket,id=c,fd={fd},server=on,wait=off"
        # QEMU locks an image only once it is used.
        node = f"{_NODE},locking=off"
        options = [("chardev", chardev), ("monitor", "c"), ("blockdev", node)]
        daemon = Daemon(control, options)
        try:
            yield
        finally:
            daemon.close()
            control.close()


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[QmpClient]]:
    """QEMU's, ours."""
    folder = tmp_path_factory.mktemp("beside")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("disk.img").write_bytes(bytes(1 << 20))
        with (
            _qemu("qemu.sock"),
            _ours("ours.sock"),
            QmpClient("qemu.sock") as qemu,
            QmpClient("ours.sock") as ours,
        ):
            yield [qemu, ours]


def _node(**options: object) -> dict[str, object]:
    named = {key.replace("_", "-"): value for key, value in options.items()}
    return {"execute": "blockdev-add", "arguments": named}


def _export(**options: object) -> dict[str, object]:
    named = {key.replace("_", "-"): value for key, value in options.items()}
    return {"execute": "block-export-add", "arguments": {"type": "vduse-blk", **named}}


def _resize(**options: object) -> dict[str, object]:
    named = {key.replace("_", "-"): value for key, value in options.items()}
    return {"execute": "block_resize", "arguments": named}


@pytest.mark.parametrize(
    "request_",
    [
        {"execute": "nonsense"},
        {"execute": "qmp_capabilities"},
        {"execute": 5},
        {"execute": "query-block-exports"},
        {"execute": "query-block-exports", "id": [1, {"a": None}]},
        {"execute": "query-block-exports", "foo": 1},
        {"execute": "query-block-exports", "arguments": []},
        {"execute": "query-block-exports", "arguments": {"x": 1}},
        {"exec-oob": "query-block-exports"},
        {"id": 3},
        {"foo": 1},
        [1],
        "text",
        7,
        None,
        _node(),
        _node(driver="nonsense", node_name="a"),
        _node(driver="file", node_name="a"),
        _node(driver="file", filename="disk.img"),
        _node(driver="file", filename="none", node_name="a"),
        _node(driver="file", filename="disk.img", node_name="f"),
        _node(driver="file", filename="disk.img", node_name="1x"),
        _node(driver="file", filename="disk.img", node_name="a", bogus=1),
        _node(driver="file", filename="disk.img", node_name="a", read_only="on"),
        _node(driver="file", filename="disk.img", node_name="a", cache=1),
        _node(driver="file", filename="disk.img", node_name="a", cache={"x": 1}),
        _node(driver="file", filename="disk.img", node_name="a", aio="native"),
        _node(driver="file", filename="disk.img", node_name="a", aio="bad"),
        _node(driver="file", filename="/dev/null", node_name="a"),
        _node(driver="raw", node_name="a", file="none"),
        _node(driver="null-co", node_name="a", size="1M"),
        {"execute": "blockdev-del", "arguments": {"node-name": "none"}},
        _export(id="e", node_name="f"),
        _export(id="e", node_name="none", name="d"),
        _export(id="1e", node_name="f", name="d"),
        {"execute": "block-export-del", "arguments": {"id": "none"}},
        {"execute": "block-export-del", "arguments": {"id": "none", "mode": "soft"}},
        _resize(),
        _resize(size=512),
        _resize(size=-1, node_name="f"),
        _resize(size="1", node_name="f"),
        _resize(size=512, node_name="none"),
        _resize(size=2 << 20, node_name="f"),
        _resize(size=512, device="none"),
    ],
    ids=json.dumps,
)
def test_the_answers_are_qemus(clients: list[QmpClient], request_: Any) -> None:
    """Where ours says more, it is a hint after QEMU's words."""
    for client in clients:
        client.send(json.dumps(request_).encode() + b"\n")
    qemus, ours = (client.answer() for client in clients)
    if "error" in qemus:
        assert ours["error"]["desc"].startswith(qemus["error"]["desc"])
        ours["error"]["desc"] = qemus["error"]["desc"]
    assert ours == qemus


def test_a_nodes_facts_are_those_of_qemus(clients: list[QmpClient]) -> None:
    qemus, ours = (client.call("query-named-block-nodes")[0] for client in clients)
    assert ours.keys() <= qemus.keys()
    for facts in (qemus, ours):
        del facts["image"]
    assert {key: qemus[key] for key in ours} == ours
