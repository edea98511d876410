"""The QMP server over real sockets: the protocol, clumsy and hostile clients, its end."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qemu.qmp import QMPClient as QemuClient

from tests.unit.qmp_client import QmpClient
from vduse.daemon.qmp.arguments import Model
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.qmp.server import MAX_PENDING, QmpServer
from vduse.daemon.qmp.table import QmpCommand
from vduse.exports.listen import UnixListener


class _Echo(Model, frozen=True):
    text: str
    times: int = 1


class _Echoed(Model, frozen=True):
    some_text: str


class _Stage:
    """A server with a few commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.answered = threading.Event()
        self.gate = threading.Event()
        self.server = QmpServer(
            [
                QmpCommand("echo", "", self._echo, _Echo, _Echoed),
                QmpCommand("nothing", "", lambda _: None, answered=self.answered.set),
                QmpCommand("wait", "", lambda _: self.gate.wait() and None),
                QmpCommand("fault", "", self._fault),
                QmpCommand("refuse", "", self._refuse, answered=self.answered.set),
            ]
        )
        self.path = self.listen("a.sock")

    def listen(self, name: str, *, pretty: bool = False) -> str:
        path = str(self._folder / name)
        self.server.listen(UnixListener(path, 0o600), pretty=pretty)
        return path

    @staticmethod
    def _echo(arguments: _Echo) -> _Echoed:
        return _Echoed(some_text=arguments.text * arguments.times)

    @staticmethod
    def _fault(_: object) -> None:
        raise KeyError("oops")

    @staticmethod
    def _refuse(_: object) -> None:
        raise QmpError("no")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[_Stage]:
    stage = _Stage(tmp_path)
    yield stage
    stage.gate.set()
    stage.server.close()


def _desc(client: QmpClient, request: bytes) -> str:
    client.send(request + b"\n")
    error = client.answer()["error"]
    assert error["class"] == "GenericError"
    desc = error["desc"]
    assert isinstance(desc, str)
    return desc


def test_the_greeting_names_the_version(stage: _Stage) -> None:
    with QmpClient(stage.path, negotiate=False) as client:
        greeting = client.answer()["QMP"]
    assert greeting["capabilities"] == []
    assert set(greeting["version"]["qemu"]) == {"major", "minor", "micro"}
    assert greeting["version"]["package"].startswith("vduse ")


def test_commands_come_after_negotiation(stage: _Stage) -> None:
    with QmpClient(stage.path, negotiate=False) as client:
        client.answer()
        for name in ("query-commands", "nonsense"):
            assert client.execute(name)["error"] == {
                "class": "CommandNotFound",
                "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
            }
        assert client.refusal("qmp_capabilities", foo=1) == "Parameter 'foo' is unexpected"
        assert client.refusal("qmp_capabilities", enable=["oob"]) == (
            "Capability oob not available"
        )
        assert client.refusal("qmp_capabilities", enable=1) == (
            "Invalid parameter type for 'enable', expected: array"
        )
        assert client.call("qmp_capabilities", enable=[]) == {}
        assert client.execute("qmp_capabilities")["error"] == {
            "class": "CommandNotFound",
            "desc": "Capabilities negotiation is already complete, command ignored",
        }


def test_commands_are_listed(stage: _Stage) -> None:
    with QmpClient(stage.path) as client:
        names = [info["name"] for info in client.call("query-commands")]
    assert names == [
        "qmp_capabilities",
        "echo",
        "nothing",
        "wait",
        "fault",
        "refuse",
        "query-commands",
    ]


def test_a_command_is_answered(stage: _Stage) -> None:
    with QmpClient(stage.path) as client:
        assert client.call("echo", text="ab", times=2) == {"some-text": "abab"}
        assert client.call("nothing") == {}
    assert stage.answered.wait(60)


@pytest.mark.parametrize("request_id", [7, "x", None, [1, {"a": None}], 1.5, True])
def test_an_id_comes_back(stage: _Stage, request_id: Any) -> None:
    with QmpClient(stage.path) as client:
        for request in ({"execute": "nothing"}, {"execute": "refuse"}, {"execute": "x"}, {}):
            client.send(json.dumps({**request, "id": request_id}).encode() + b"\n")
            assert client.answer()["id"] == request_id


@pytest.mark.parametrize(
    ("request_", "desc"),
    [
        (b"[1, 2]", "QMP input must be a JSON object"),
        (b'"text"', "QMP input must be a JSON object"),
        (b"5", "QMP input must be a JSON object"),
        (b"null", "QMP input must be a JSON object"),
        (b"{}", "QMP input lacks member 'execute'"),
        (b'{"execute": 5}', "QMP input member 'execute' must be a string"),
        (b'{"execute": "x", "foo": 1}', "QMP input member 'foo' is unexpected"),
        (b'{"exec-oob": "x"}', "QMP input member 'exec-oob' is unexpected"),
        (
            b'{"execute": "x", "arguments": [1]}',
            "QMP input member 'arguments' must be an object",
        ),
        (
            b'{"execute": "x", "arguments": null}',
            "QMP input member 'arguments' must be an object",
        ),
        (b'{"execute": "nothing", "arguments": {"x": 1}}', "Parameter 'x' is unexpected"),
        (b'{"execute": "echo"}', "Parameter 'text' is missing"),
        (
            b'{"execute": "echo", "arguments": {"tex": ""}}',
            "Parameter 'tex' is unexpected, did you mean 'text'?",
        ),
        (
            b'{"execute": "echo", "arguments": {"text": 1}}',
            "Invalid parameter type for 'text', expected: string",
        ),
        (
            b'{"execute": "echo", "arguments": {"text": "", "times": true}}',
            "Invalid parameter type for 'times', expected: integer",
        ),
        (b'{"execute": "refuse"}', "no"),
    ],
)
def test_a_mistake_is_an_error_object(stage: _Stage, request_: bytes, desc: str) -> None:
    with QmpClient(stage.path) as client:
        assert _desc(client, request_) == desc
        assert client.call("nothing") == {}


@pytest.mark.parametrize(
    "garbage", [b"{]", b'{"execute":\n}', b"xyz", b"\xff\xfe", b'{"a": "\xff"}', b"'a'", b"{,}"]
)
def test_no_json_is_an_error_object(stage: _Stage, garbage: bytes) -> None:
    with QmpClient(stage.path) as client:
        assert _desc(client, garbage).startswith("JSON parse error, ")
        assert client.call("nothing") == {}


def test_an_unknown_command_is_named(stage: _Stage) -> None:
    with QmpClient(stage.path) as client:
        assert client.execute("ehco")["error"] == {
            "class": "CommandNotFound",
            "desc": "The command ehco has not been found, did you mean 'echo'?",
        }


def test_a_fault_of_a_handler_is_an_error_object(
    stage: _Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with QmpClient(stage.path) as client:
        assert client.refusal("fault") == "fault: internal fault: KeyError: 'oops'"
        assert client.call("nothing") == {}
    assert "Traceback" in caplog.text


def test_a_refusal_is_not_told_as_answered(stage: _Stage) -> None:
    with QmpClient(stage.path) as client:
        client.refusal("refuse")
        client.refusal("refuse")
    assert not stage.answered.is_set()


def test_events_go_to_who_has_negotiated(stage: _Stage) -> None:
    other = stage.listen("b.sock")
    with QmpClient(stage.path) as client, QmpClient(other, negotiate=False) as early:
        early.answer()
        stage.server.emit("HAPPENED", {"id": "x"})
        event = client.answer()
        assert (event["event"], event["data"]) == ("HAPPENED", {"id": "x"})
        assert set(event["timestamp"]) == {"seconds", "microseconds"}
        assert early.call("qmp_capabilities") == {}


def test_one_client_at_a_time(stage: _Stage) -> None:
    first = QmpClient(stage.path)
    second = QmpClient(stage.path, negotiate=False)
    second.send(b'{"execute": "nothing"}')
    assert first.call("nothing") == {}  # a round of the loop, in which nobody was let in
    second.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.socket.recv(1)
    second.socket.setblocking(True)
    first.close()
    assert "QMP" in second.answer()
    # It begins anew.
    assert second.answer()["error"]["class"] == "CommandNotFound"
    second.close()


def test_pretty_answers_are_indented(stage: _Stage) -> None:
    path = stage.listen("pretty.sock", pretty=True)
    with QmpClient(path, negotiate=False) as client:
        lines = [client._file.readline() for _ in range(3)]
    assert lines[:2] == [b"{\r\n", b'    "QMP": {\r\n']


def test_who_sends_and_closes_its_side_is_answered(stage: _Stage) -> None:
    with QmpClient(stage.path) as client:
        client.send(b'{"execute": "nothing", "id": 1}{"execute": "nothing", "id": 2}')
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.answer()["id"] for _ in range(2)] == [1, 2]
        with pytest.raises(EOFError):
            client.answer()


def test_a_command_that_waits_holds_nobody_elses_connection(stage: _Stage) -> None:
    other = stage.listen("b.sock")
    with QmpClient(stage.path) as client, QmpClient(other, negotiate=False) as early:
        client.send(b'{"execute": "wait"}')
        early.answer()
        assert early.call("qmp_capabilities") == {}
        assert _desc(early, b"{}") == "QMP input lacks member 'execute'"
        stage.gate.set()
        assert client.answer() == {"return": {}}


def test_who_does_not_read_is_not_read_from_and_delays_nobody(stage: _Stage) -> None:
    other = stage.listen("b.sock")
    with QmpClient(stage.path) as slow, QmpClient(other) as client:
        request = b'{"execute": "echo", "arguments": {"text": "x", "times": 10000}}'
        slow.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                slow.socket.send(request * 10)
                client.call("nothing")
        assert client.call("nothing") == {}


def test_who_does_not_read_its_events_loses_its_connection(
    stage: _Stage, caplog: pytest.LogCaptureFixture
) -> None:
    other = stage.listen("b.sock")
    with QmpClient(stage.path) as slow, QmpClient(other) as client:
        for _ in range(MAX_PENDING // (1 << 16) + 16):
            stage.server.emit("LARGE", {"data": "x" * (1 << 16)})
            client.answer()
        with pytest.raises((EOFError, ConnectionResetError, ValueError)):
            while True:
                slow.answer()
    assert "does not read its events" in caplog.text


def test_a_client_that_dies_makes_room(stage: _Stage) -> None:
    for request in (b"", b'{"execute": "noth', b'{"execute": "nothing"}' * 1000):
        client = QmpClient(stage.path)
        client.send(request)
        client.close()
    with QmpClient(stage.path) as client:
        assert client.call("nothing") == {}


def test_close_sends_what_is_to_be_sent_and_removes_the_socket(tmp_path: Path) -> None:
    stage = _Stage(tmp_path)
    with QmpClient(stage.path) as client:
        stage.server.emit("LAST", {})
        stage.server.close()
        assert client.answer()["event"] == "LAST"
        with pytest.raises(EOFError):
            client.answer()
    assert list(tmp_path.iterdir()) == []
    stage.server.close()


def test_close_waits_for_no_command_and_no_client(tmp_path: Path) -> None:
    stage = _Stage(tmp_path)
    with QmpClient(stage.path) as client:
        client.send(b'{"execute": "wait"}')
        client.send(b"x" * 1000)
        stage.server.close()
    stage.gate.set()


def test_two_commands_of_one_name_are_refused() -> None:
    commands = [QmpCommand("a", "", lambda _: None)] * 2
    with pytest.raises(ValueError, match="two commands are called a"):
        QmpServer(commands)


def test_qemus_own_client(stage: _Stage) -> None:
    async def talk() -> Any:
        client = QemuClient("test")
        await client.connect(stage.path)
        result = await client.execute("echo", {"text": "x", "times": 3})
        stage.server.emit("HAPPENED", {})
        event = await client.events.get()
        await client.disconnect()
        return result, event["event"]

    assert asyncio.run(talk()) == ({"some-text": "xxx"}, "HAPPENED")


_REQUEST = st.dictionaries(
    st.sampled_from(["execute", "arguments", "id", "x"]),
    st.sampled_from(["echo", "nothing", "fault", "qmp_capabilities", 1, None])
    | st.dictionaries(st.sampled_from(["text", "times", "y"]), st.text() | st.integers()),
).map(lambda request: json.dumps(request).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary() | _REQUEST, max_size=10))
def test_whatever_is_sent_the_connection_goes_on(stage: _Stage, pieces: list[bytes]) -> None:
    with QmpClient(stage.path) as client:
        for piece in pieces:
            client.send(piece)
        client.send(b'\x01"\n{"execute": "nothing", "id": "last"}\n')
        while (answer := client.answer()).get("id") != "last":
            assert ("error" in answer) != ("return" in answer)
        assert answer["return"] == {}
