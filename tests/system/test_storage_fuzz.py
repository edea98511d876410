"""Whatever a client sends to the storage daemon's QMP, made from the daemon's own schema: it is
answered, with an object that says what is wrong where something is, and the daemon goes on."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.qmp_client import QmpClient
from tests.unit.test_storage_options import NoControl
from vduse.daemon.storage.daemon import Daemon

_SOCKET = "qmp.sock"
#: Of a monitor for clients that speak no QMP.
_RAW = "raw.sock"
_IMAGE = "disk.img"
#: Names that examples have in common, so that they meet each other's nodes, exports and objects.
_NAMES = st.sampled_from(["a", "b", "c"])
#: No slash: sockets are made where texts say.
_TEXT = _NAMES | st.text(st.characters(codec="utf-8", exclude_characters="/"), max_size=8)
#: What is mostly meant, by the member's name.
_MEANT: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["id", "node-name", "throttle-group"], _NAMES),
    "file": _NAMES,
    "filename": st.just(_IMAGE),
    "path": st.sampled_from(["a.sock", "b.sock", "a", "/objects/a"]),
    "property": st.just("limits"),
    "size": st.sampled_from([512, 1 << 20, 1 << 21]),
}
#: Not needed by their types, but for anything to come of it.
_ALWAYS = {"node-name", "name"}
_INT = st.sampled_from([-1, 0, 1, 2, 64, 512, 4096, 1 << 20, 1 << 63]) | st.integers()
_ANYTHING = st.recursive(
    st.none() | st.booleans() | _INT | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_CLASSES = {"GenericError", "CommandNotFound", "DeviceNotFound"}
#: There to be used.
_BEGIN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("object-add", {"qom-type": "throttle-group", "id": "a"}),
    ("blockdev-add", {"driver": "null-co", "node-name": "a"}),
    ("blockdev-add", {"driver": "file", "node-name": "b", "filename": _IMAGE}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd.sock"}}}),
)
#: Ends the daemon, as it should.
_NOT_CALLED = "quit"


class Schema:
    """What query-qmp-schema tells, as strategies."""

    def __init__(self, entities: list[dict[str, Any]]) -> None:
        self._entities = {entity["name"]: entity for entity in entities}
        self._made: dict[str, st.SearchStrategy[Any]] = {}

    def request(self) -> st.SearchStrategy[dict[str, Any]]:
        """A command with arguments that mostly fit."""
        calls = [
            st.fixed_dictionaries(
                {"execute": st.just(name), "arguments": self._of(entity["arg-type"])},
                optional={"id": _ANYTHING},
            )
            for name, entity in self._entities.items()
            if entity["meta-type"] == "command" and name not in (_NOT_CALLED, "qmp_capabilities")
        ]
        return st.one_of(calls)

    def _of(self, name: str) -> st.SearchStrategy[Any]:
        if name not in self._made:
            self._made[name] = st.deferred(lambda: self._strategy(self._entities[name]))
        return self._made[name]

    def _strategy(self, entity: dict[str, Any]) -> st.SearchStrategy[Any]:
        match entity["meta-type"]:
            case "builtin":
                kinds = {"int": _INT, "string": _TEXT, "boolean": st.booleans()}
                return kinds.get(entity["json-type"], _ANYTHING)
            case "enum":
                return st.sampled_from(entity["values"])
            case "array":
                return st.lists(self._of(entity["element-type"]), max_size=2)
            case "alternate":
                return st.one_of([self._of(member["type"]) for member in entity["members"]])
        if "tag" not in entity:
            return self._object(entity["members"])
        common = [member for member in entity["members"] if member["name"] != entity["tag"]]
        return st.one_of(
            [
                self._object(
                    [*common, *self._entities[variant["type"]]["members"]],
                    {entity["tag"]: st.just(variant["case"])},
                )
                for variant in entity["variants"]
            ]
        )

    def _object(
        self, members: list[dict[str, Any]], tag: dict[str, st.SearchStrategy[Any]] | None = None
    ) -> st.SearchStrategy[Any]:
        needed, optional = dict(tag or {}), {}
        for member in members:
            name, strategy = member["name"], self._of(member["type"])
            if name in _MEANT:
                strategy = _MEANT[name] | strategy
            if "default" in member and name not in _ALWAYS:
                optional[name] = strategy
            else:
                needed[name] = strategy
        # Few at a time: each may be refused.
        chosen = (
            st.lists(st.sampled_from(sorted(optional)), max_size=2) if optional else st.just([])
        )
        return chosen.flatmap(
            lambda names: st.fixed_dictionaries({**needed, **{n: optional[n] for n in names}})
        )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QmpClient]:
    """Of a daemon where all examples leave what they make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        Path(_IMAGE).write_bytes(bytes(1 << 20))
        monitor = f"socket,id=mon,path={_SOCKET},server=on,wait=off"
        raw = f"socket,id=raw,path={_RAW},server=on,wait=off"
        options = [("chardev", monitor), ("monitor", "mon"), ("chardev", raw), ("monitor", "raw")]
        daemon = Daemon(NoControl(), options)
        try:
            with QmpClient(_SOCKET) as found:
                yield found
        finally:
            daemon.close()
        assert sorted(os.listdir()) == [_IMAGE]


@pytest.fixture(scope="module")
def requests(client: QmpClient) -> st.SearchStrategy[dict[str, Any]]:
    """By the daemon's schema."""
    return Schema(client.call("query-qmp-schema")).request()


def _answer(client: QmpClient) -> dict[str, Any]:
    while "event" in (message := client.answer()):
        pass
    return message


def _check(answer: dict[str, Any]) -> None:
    if "return" not in answer:
        error = answer["error"]
        assert error["class"] in _CLASSES
        assert "internal fault" not in error["desc"]


@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_calls_by_the_schema_are_answered(
    client: QmpClient,
    requests: st.SearchStrategy[dict[str, Any]],
    data: st.DataObject,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    for name, arguments in _BEGIN:  # what earlier examples have left of it
        client.execute(name, **arguments)
    for request in data.draw(st.lists(requests, min_size=1, max_size=12)):
        client.send(json.dumps(request).encode() + b"\n")
        answer = _answer(client)
        _check(answer)
        if "id" in request:
            assert answer["id"] == request["id"]
    # What came to an end ends; others may have what it was.
    for export in client.call("query-block-exports"):
        client.call("block-export-del", id=export["id"], mode="hard")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arguments_of_any_kind_are_answered(
    client: QmpClient, requests: st.SearchStrategy[dict[str, Any]], data: st.DataObject
) -> None:
    request = data.draw(requests)
    wrong = {**request, "arguments": data.draw(_ANYTHING)}
    client.send(json.dumps(wrong).encode() + b"\n")
    _check(_answer(client))


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_bytes_of_any_kind_are_answered(client: QmpClient, garbage: bytes) -> None:
    # An object that is open, or a string, would take in what comes next.
    client.send(garbage.translate(None, b'{["') + b"\n")
    client.send(b'{"execute": "query-version", "id": 7}\n')
    while (answer := client.answer()).get("id") != 7:
        assert answer.get("error", {}).get("class", "GenericError") in _CLASSES


#: What QMP is made of, so that random pieces come near to it.
_PIECES = st.sampled_from(
    [
        *(bytes([byte]) for byte in b'{}[]",:\\\r\n\0\xff'),
        b'{"execute":"qmp_capabilities"}',
        b'{"execute":"query-named-block-nodes","arguments":{}}',
        b'{"execute":"blockdev-add","arguments":{"driver":',
        b'"null-co"',
        b"[" * 200,
        b'"\\ud800"',
        b"1e999",
    ]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_PIECES | st.binary(max_size=64), max_size=12))
def test_a_connection_of_raw_bytes_gets_objects_and_the_daemon_goes_on(
    client: QmpClient, pieces: list[bytes]
) -> None:
    with QmpClient(_RAW, negotiate=False) as raw:
        raw.send(b"".join(pieces))
        raw.socket.shutdown(socket.SHUT_WR)
        assert "QMP" in raw.answer()
        with suppress(EOFError):
            while True:
                answer = raw.answer()
                if "event" not in answer:
                    _check(answer)
    assert client.call("query-version")
