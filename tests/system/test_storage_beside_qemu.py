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


def _call(command: str, /, **options: object) -> dict[str, object]:
    named = {key.replace("_", "-"): value for key, value in options.items()}
    return {"execute": command, "arguments": named}


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
        _export(type="nbd", id="e", node_name="f"),
        _export(type="vhost-user-blk", id="e", node_name="f"),
        _export(type="nonsense", id="e", node_name="f"),
        _call("nbd-server-start"),
        _call("nbd-server-start", addr={"type": "unix"}),
        _call("nbd-server-start", addr={"type": "unix", "data": {}}),
        _call("nbd-server-start", addr={"type": "unix", "data": {"path": "x", "y": 1}}),
        _call("nbd-server-stop"),
        _call("object-add"),
        _call("object-add", qom_type="throttle-group"),
        _call("object-add", qom_type="throttle-group", id="1"),
        _call("object-add", qom_type="throttle-group", id="t", limits={"iops-total": -1}),
        _call("object-add", qom_type="throttle-group", id="t", limits={"iops-total-max": 1}),
        _call(
            "object-add",
            qom_type="throttle-group",
            id="t",
            limits={"bps-total": 2, "bps-read": 1},
        ),
        _call(
            "object-add",
            qom_type="throttle-group",
            id="t",
            limits={"iops-total": 2, "iops-total-max": 1},
        ),
        _call("object-add", qom_type="throttle-group", id="t", limits={"iops-size": 1}),
        _call("object-add", qom_type="secret", id="s"),
        _call("object-add", qom_type="secret", id="s", data="x", file="y"),
        _call("object-del", id="none"),
        _call("qom-get", path="none", property="limits"),
        _call("qom-set", path="none", property="limits", value={}),
        _node(driver="throttle", node_name="a", file="f", throttle_group="none"),
        _call("blockdev-reopen", options=[{"driver": "raw", "node-name": "none", "file": "f"}]),
        _call("blockdev-reopen", options=[{"driver": "raw", "file": "f"}]),
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


def _reopen(*options: dict[str, object]) -> dict[str, object]:
    return _call("blockdev-reopen", options=list(options))


def test_nodes_in_use_are_reopened_alike(clients: list[QmpClient]) -> None:
    Path("two.img").write_bytes(bytes(1 << 20))
    file = {"driver": "file", "filename": "two.img", "node-name": "n", "locking": "off"}
    raw = {"driver": "raw", "node-name": "r", "file": "n"}
    throttle = {"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "n"}
    direct, read_only = {"cache": {"direct": True}}, {"read-only": True}
    life = [
        _call("object-add", qom_type="throttle-group", id="g"),
        {"execute": "blockdev-add", "arguments": file},
        {"execute": "blockdev-add", "arguments": raw},
        _call("nbd-server-start", addr={"type": "unix", "data": {"path": "NAME.sock"}}),
        _export(type="nbd", id="e", node_name="r", writable=True),
        _reopen(file),
        _reopen({**file, **direct}),
        _reopen({**file, **read_only}),
        _reopen({**raw, **read_only}),
        _reopen({**file, **direct}, {**raw, **read_only}),
        _reopen({**file, **read_only}, {**raw, **read_only}),
        _reopen({**file, "driver": "host_device"}),
        {"execute": "blockdev-add", "arguments": throttle},
        _reopen({**raw, "file": "t"}),
        _call("blockdev-del", node_name="t"),
        _reopen({**raw, "file": "r"}),
        _reopen({**throttle, "file": "r"}),
        _reopen({**throttle, "throttle-group": "none"}),
        _reopen({**raw, "file": "none"}),
        _reopen({**raw, "offset": 512}),
        _reopen({**raw, "size": 512}),
        _reopen(raw),
        _reopen({**file, "node-name": "x"}),
        _reopen({**file, "discard": "unmap"}),
        _call("blockdev-reopen"),
        _call("blockdev-reopen", options=5),
        _call("blockdev-del", node_name="t"),
        _call("block-export-del", id="e"),
        _call("nbd-server-stop"),
        _call("blockdev-del", node_name="r"),
        _call("blockdev-del", node_name="n"),
        # The same with the file within.
        {"execute": "blockdev-add", "arguments": {**raw, "file": {**file, "node-name": "w"}}},
        _reopen({**file, "node-name": "w", **direct}),
        _reopen({**raw, "file": "w", **read_only}),
        {"execute": "blockdev-add", "arguments": {**throttle, "file": "w"}},
        _reopen({**raw, "file": "t"}),
        _reopen({**raw, "file": "w"}),
        _call("blockdev-del", node_name="t"),
        _call("blockdev-del", node_name="r"),
        _call("object-del", id="g"),
    ]
    _lived_alike(clients, life)


def test_a_life_of_nodes_and_exports_is_answered_alike(clients: list[QmpClient]) -> None:
    """Each request depends on those before it."""
    throttle = {"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "n"}
    life = [
        _call("object-add", qom_type="throttle-group", id="g", limits={"iops-total": 1000}),
        _call("object-add", qom_type="throttle-group", id="g"),
        _call("blockdev-add", driver="null-co", node_name="n", size=1 << 20, read_zeroes=False),
        _call("blockdev-add", **throttle),
        _call("object-del", id="g"),
        _call("blockdev-del", node_name="n"),
        _export(type="nbd", id="e", node_name="t"),
        _call("nbd-server-start", addr={"type": "unix", "data": {"path": "NAME.sock"}}),
        _call("nbd-server-start", addr={"type": "unix", "data": {"path": "NAME.sock"}}),
        _export(type="nbd", id="e", node_name="t", writable=True),
        _export(type="nbd", id="e", node_name="t"),
        _export(type="nbd", id="e2", node_name="t", name="t"),
        _call("query-block-exports"),
        _call("blockdev-del", node_name="t"),
        _call("qom-set", path="g", property="limits", value={"iops-total": 50}),
        _call("qom-set", path="/objects/g", property="limits", value={"iops-total": -1}),
        _call("block-export-del", id="e"),
        _call("block-export-del", id="e"),
        _call("nbd-server-stop"),
        _call("nbd-server-stop"),
        _call("blockdev-del", node_name="t"),
        _call("object-del", id="g"),
        _call("blockdev-del", node_name="n"),
    ]
    _lived_alike(clients, life)


def _lived_alike(clients: list[QmpClient], life: list[dict[str, object]]) -> None:
    for request in life:
        answers = []
        for name, client in zip(("qemu", "ours"), clients, strict=True):
            client.send(json.dumps(request).replace("NAME", name + "-nbd").encode() + b"\n")
            while "event" in (answer := client.answer()):
                assert answer["event"] == "BLOCK_EXPORT_DELETED"
            answers.append(answer)
        qemus, ours = answers
        assert ("error" in qemus) == ("error" in ours), (request, qemus, ours)
        if "error" in qemus:
            assert ours["error"]["class"] == qemus["error"]["class"]
            said, told = ours["error"]["desc"], qemus["error"]["desc"]
            assert said.startswith(told), (request, told, said)
        else:
            assert ours == qemus
