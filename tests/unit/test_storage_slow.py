"""The storage daemon while a node takes its time: a server that does not answer, here played by
null-co nodes whose opening, resizing and closing wait for the test."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.qmp_client import TIMEOUT, QmpClient
from tests.unit.test_storage_options import NoControl
from vduse import _native
from vduse.daemon.storage.daemon import Daemon
from vduse.daemon.storage.exports.nbd import NbdExport, NbdOptions
from vduse.daemon.storage.nodes import graph
from vduse.daemon.storage.nodes.null import NullNode
from vduse.daemon.storage.nodes.throttle import ThrottleNode


class Gate:
    """Where those called ``slow`` wait while it is shut."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def shut(self) -> None:
        self.open.clear()
        self.reached.clear()

    def wait(self, name: str) -> None:
        if name == "slow":
            self.reached.set()
            assert self.open.wait(TIMEOUT)


class Gates:
    """One for each kind of work."""

    def __init__(self) -> None:
        self.opening, self.closing, self.resizing, self.exporting = (Gate() for _ in range(4))
        #: Of slow nodes, in the order they were opened.
        self.backends: list[_native.Backend] = []

    def set(self) -> None:
        for gate in (self.opening, self.closing, self.resizing, self.exporting):
            gate.open.set()


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gates]:
    found = Gates()
    open_null, open_throttle = NullNode.open_backend, ThrottleNode.open_backend
    close, export = NullNode.close, NbdOptions.open

    def slow_null(node: NullNode) -> _native.Backend:
        found.opening.wait(node.name)
        backend = open_null(node)
        if node.name == "slow":
            found.backends.append(backend)
        return backend

    def slow_throttle(node: ThrottleNode) -> _native.Backend:
        found.opening.wait(node.name)
        return open_throttle(node)

    def slow_close(node: NullNode) -> None:
        found.closing.wait(node.name)
        close(node)

    def slow_export(options: NbdOptions, node: Any, host: Any) -> NbdExport:
        found.exporting.wait(options.id)
        return export(options, node, host)

    monkeypatch.setattr(NullNode, "open_backend", slow_null)
    monkeypatch.setattr(ThrottleNode, "open_backend", slow_throttle)
    monkeypatch.setattr(NullNode, "close", slow_close)
    monkeypatch.setattr(NullNode, "resize", lambda node, _size: found.resizing.wait(node.name))
    monkeypatch.setattr(NbdOptions, "open", slow_export)
    yield found
    found.set()


@contextmanager
def _daemon(folder: Path) -> Iterator[Daemon]:
    """With the monitors ``a`` and ``b``."""
    options = [("nbd-server", f"addr.type=unix,addr.path={folder}/nbd.sock")]
    for name in "ab":
        chardev = f"socket,id={name},path={folder}/{name},server=on,wait=off"
        options += [("chardev", chardev), ("monitor", name)]
    daemon = Daemon(NoControl(), options)
    try:
        yield daemon
    finally:
        daemon.close()


class Stage:
    """A daemon, and a client at each of its monitors."""

    def __init__(self, folder: Path, gates: Gates, a: QmpClient, b: QmpClient) -> None:
        self.folder, self.gates, self.a, self.b = folder, gates, a, b

    def begin(self, gate: Gate, command: str, **arguments: Any) -> None:
        """The client at ``a`` sends a command, which has come to ``gate``."""
        gate.shut()
        request = {"execute": command, "arguments": arguments}
        self.a.send(json.dumps(request).encode())
        assert gate.reached.wait(TIMEOUT)

    def answer(self) -> dict[str, Any]:
        """What the client at ``a`` is answered next."""
        while "event" in (message := self.a.answer()):
            pass
        return message

    def nodes(self) -> list[str]:
        return [node["node-name"] for node in self.b.call("query-named-block-nodes")]

    def others_go_on(self) -> None:
        """All that monitor ``b`` wants done."""
        b = self.b
        b.call("object-add", **{"qom-type": "throttle-group", "id": "g"})
        b.call("blockdev-add", driver="null-co", node_name="other")
        b.call("blockdev-add", driver="throttle", node_name="t", file="other", throttle_group="g")
        b.call("block-export-add", type="nbd", id="e", node_name="t")
        assert {"other", "t"} <= set(self.nodes())
        assert "e" in [export["id"] for export in b.call("query-block-exports")]
        assert b.call("query-blockstats")
        b.call("block_resize", node_name="other", size=1 << 20)
        b.call("block-export-del", id="e")
        b.call("blockdev-del", node_name="t")
        b.call("blockdev-del", node_name="other")
        b.call("object-del", id="g")


@pytest.fixture
def stage(tmp_path: Path, gates: Gates) -> Iterator[Stage]:
    with ExitStack() as exits:
        exits.enter_context(_daemon(tmp_path))
        a, b = (exits.enter_context(QmpClient(f"{tmp_path}/{name}")) for name in "ab")
        exits.callback(gates.set)
        yield Stage(tmp_path, gates, a, b)


SLOW = {"driver": "null-co", "node-name": "slow"}


def test_a_node_that_opens_slowly_holds_up_its_own_monitor_alone(stage: Stage) -> None:
    stage.begin(stage.gates.opening, "blockdev-add", **SLOW)
    stage.a.send(b'{"execute": "query-version", "id": 2}')
    stage.others_go_on()
    assert stage.nodes() == []
    busy = "node 'slow' is still being opened"
    assert stage.b.refusal("blockdev-add", **SLOW) == busy
    assert stage.b.refusal("block-export-add", type="nbd", id="e", node_name="slow") == busy
    assert stage.b.refusal("blockdev-del", node_name="slow") == busy
    stage.gates.opening.open.set()
    assert stage.answer() == {"return": {}}
    assert stage.answer()["id"] == 2
    assert stage.nodes() == ["slow"]


def test_what_a_node_that_is_being_opened_lies_on_stays(stage: Stage) -> None:
    stage.b.call("blockdev-add", driver="null-co", node_name="child")
    stage.b.call("object-add", **{"qom-type": "throttle-group", "id": "limits"})
    throttle = {
        "driver": "throttle",
        "node-name": "slow",
        "throttle-group": "limits",
        "file": "child",
    }
    stage.begin(stage.gates.opening, "blockdev-add", **throttle)
    in_use = "is in use: by slow"
    assert stage.b.refusal("blockdev-del", node_name="child") == f"Block device child {in_use}"
    assert "by slow" in stage.b.refusal("object-del", id="limits")
    stage.gates.opening.open.set()
    assert stage.answer() == {"return": {}}
    stage.b.call("blockdev-del", node_name="slow")
    # Nothing holds them any more.
    stage.b.call("blockdev-del", node_name="child")
    stage.b.call("object-del", id="limits")


def test_a_node_that_closes_slowly_keeps_its_name_until_then(stage: Stage) -> None:
    stage.b.call("blockdev-add", **SLOW)
    stage.begin(stage.gates.closing, "blockdev-del", **{"node-name": "slow"})
    stage.others_go_on()
    assert stage.nodes() == []
    assert stage.b.refusal("blockdev-add", **SLOW) == "node 'slow' is still being closed"
    stage.gates.closing.open.set()
    assert stage.answer() == {"return": {}}
    stage.b.call("blockdev-add", **SLOW)


def test_a_node_that_is_resized_slowly_stays_and_is_resized_once(stage: Stage) -> None:
    stage.b.call("blockdev-add", **SLOW)
    stage.begin(stage.gates.resizing, "block_resize", **{"node-name": "slow", "size": 512})
    stage.others_go_on()
    busy = "node 'slow' is still being resized"
    assert stage.b.refusal("block_resize", node_name="slow", size=1024) == busy
    assert stage.b.refusal("blockdev-del", node_name="slow") == busy
    stage.gates.resizing.open.set()
    assert stage.answer() == {"return": {}}
    stage.b.call("blockdev-del", node_name="slow")


def test_a_node_that_is_reopened_slowly_keeps_its_name(stage: Stage) -> None:
    stage.b.call("blockdev-add", **SLOW)
    options = {**SLOW, "read-only": True}
    stage.begin(stage.gates.closing, "blockdev-reopen", options=[options])
    stage.gates.opening.shut()
    stage.gates.closing.open.set()
    assert stage.gates.opening.reached.wait(TIMEOUT)
    stage.others_go_on()
    assert stage.b.refusal("blockdev-add", **SLOW) == "node 'slow' is still being reopened"
    stage.gates.opening.open.set()
    assert stage.answer() == {"return": {}}
    [node] = stage.b.call("query-named-block-nodes")
    assert node["ro"] is True


def test_an_export_whose_node_is_reopened_slowly_stays(stage: Stage) -> None:
    stage.b.call("blockdev-add", **SLOW)
    stage.b.call("blockdev-add", driver="raw", node_name="r", file="slow")
    stage.b.call("block-export-add", type="nbd", id="x", node_name="r")
    options = {**SLOW, "latency-ns": 1}
    stage.begin(stage.gates.opening, "blockdev-reopen", options=[options])
    stage.others_go_on()
    reopened = "export 'x' is still being reopened"
    assert stage.b.refusal("block-export-del", id="x", mode="hard") == reopened
    assert stage.b.refusal("nbd-server-stop") == reopened
    for node in ("r", "slow"):
        busy = f"node '{node}' is still being reopened"
        assert stage.b.refusal("blockdev-del", node_name=node) == busy
        again = {"type": "nbd", "id": "y", "node-name": node}
        assert stage.b.refusal("block-export-add", **again) == busy
        assert stage.b.refusal("block_resize", node_name=node, size=1024) == busy
    assert stage.b.refusal("blockdev-reopen", options=[options]) == busy
    stage.gates.opening.open.set()
    assert stage.answer() == {"return": {}}
    stage.b.call("block-export-del", id="x")
    stage.b.call("blockdev-del", node_name="r")
    stage.b.call("blockdev-del", node_name="slow")


def test_a_node_whose_export_is_being_opened_is_not_reopened(stage: Stage) -> None:
    stage.b.call("blockdev-add", driver="null-co", node_name="n")
    export = {"type": "nbd", "id": "slow", "node-name": "n"}
    stage.begin(stage.gates.exporting, "block-export-add", **export)
    options = {"driver": "null-co", "node-name": "n", "latency-ns": 1}
    busy = "export 'slow' is still being opened"
    assert stage.b.refusal("blockdev-reopen", options=[options]) == busy
    stage.gates.exporting.open.set()
    assert stage.answer() == {"return": {}}
    stage.b.call("blockdev-reopen", options=[options])


def test_the_nbd_server_stays_for_an_export_that_is_being_opened(stage: Stage) -> None:
    stage.b.call("blockdev-add", driver="null-co", node_name="n")
    export = {"type": "nbd", "id": "slow", "node-name": "n"}
    stage.begin(stage.gates.exporting, "block-export-add", **export)
    stage.others_go_on()
    busy = "export 'slow' is still being opened"
    assert stage.b.refusal("nbd-server-stop") == busy
    assert stage.b.refusal("block-export-del", id="slow") == busy
    assert "in use: by export 'slow'" in stage.b.refusal("blockdev-del", node_name="n")
    stage.gates.exporting.open.set()
    assert stage.answer() == {"return": {}}
    stage.b.call("nbd-server-stop")
    assert stage.b.call("query-block-exports") == []
    stage.b.call("blockdev-del", node_name="n")


def test_a_client_that_goes_leaves_its_monitor_to_the_next(stage: Stage) -> None:
    stage.begin(stage.gates.opening, "blockdev-add", **SLOW)
    stage.a.close()
    with QmpClient(f"{stage.folder}/a") as next_client:
        assert next_client.call("query-named-block-nodes") == []
        stage.gates.opening.open.set()
    with QmpClient(f"{stage.folder}/a") as last:
        while not last.call("query-named-block-nodes"):
            pass


def test_the_daemons_end_waits_for_no_node_that_is_being_opened(
    tmp_path: Path, gates: Gates, caplog: pytest.LogCaptureFixture
) -> None:
    gates.opening.shut()
    with _daemon(tmp_path), QmpClient(f"{tmp_path}/a") as client:
        client.send(json.dumps({"execute": "blockdev-add", "arguments": SLOW}).encode())
        assert gates.opening.reached.wait(TIMEOUT)
    # It has ended, and this is what it said.
    assert "node 'slow' is still being opened: left behind" in caplog.text
    assert gates.backends == []
    opener = [each for each in threading.enumerate() if each.name == "vduse-qmp-command"]
    gates.opening.open.set()
    for thread in opener:
        thread.join(TIMEOUT)
    # What came too late is closed at once.
    [backend] = gates.backends
    with pytest.raises(ValueError, match="closed"):
        backend.flush()


def test_the_daemons_end_ends_all_exports_at_once_and_then_all_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=TIMEOUT)
    ended: list[str] = []

    def together(kind: type[Any]) -> None:
        """Each waits for the other, at its end."""
        close = kind.close

        def meet(self: Any) -> None:
            both.wait()
            close(self)
            ended.append(kind.__name__)

        monkeypatch.setattr(kind, "close", meet)

    for kind in (NbdExport, ThrottleNode, NullNode):
        together(kind)
    with _daemon(tmp_path), QmpClient(f"{tmp_path}/a") as client:
        client.call("object-add", **{"qom-type": "throttle-group", "id": "g"})
        for number in range(2):
            top, file = f"t{number}", {"driver": "null-co"}
            client.call(
                "blockdev-add", driver="throttle", node_name=top, throttle_group="g", file=file
            )
            client.call("block-export-add", type="nbd", id=f"e{number}", node_name=top)
    assert ended == ["NbdExport"] * 2 + ["ThrottleNode"] * 2 + ["NullNode"] * 2


def test_the_daemons_end_waits_for_slow_nodes_once(
    tmp_path: Path, gates: Gates, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "DRAIN_TIMEOUT", 0.5)
    gates.closing.shut()
    with _daemon(tmp_path), QmpClient(f"{tmp_path}/a") as client:
        client.call("blockdev-add", **SLOW)
        client.call("blockdev-add", driver="raw", node_name="over", file="slow")
    assert gates.closing.reached.is_set()
    assert "node slow: at its end: has not ended within 0.5 s" in caplog.text


def test_an_option_whose_node_opens_slowly_leaves_signals_their_way(gates: Gates) -> None:
    class Interrupted(BaseException):
        """What a signal raises in the main thread."""

    @contextmanager
    def interruptible() -> Iterator[None]:
        yield
        raise AssertionError("the node cannot be open")

    main = threading.get_ident()

    def interrupt() -> None:
        assert gates.opening.reached.wait(TIMEOUT)
        # To the main thread, as the kernel prefers: it is not interrupted by another's.
        signal.pthread_kill(main, signal.SIGUSR2)

    def on_signal(*_: object) -> None:
        raise Interrupted

    gates.opening.shut()
    former = signal.signal(signal.SIGUSR2, on_signal)
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    try:
        with pytest.raises(Interrupted):
            Daemon(
                NoControl(), [("blockdev", "null-co,node-name=slow")], interruptible=interruptible
            )
    finally:
        signal.signal(signal.SIGUSR2, former)
        interrupter.join()
