"""One client's side of the protocol, without I/O: from a value to a call or an answer."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from vduse.daemon.qmp.arguments import Model, convert
from vduse.daemon.qmp.errors import CommandNotFound, QmpError
from vduse.daemon.qmp.table import CAPABILITIES, CommandTable, QmpCommand

log = logging.getLogger(__name__)

Answer = dict[str, Any]

_NO_ID: Any = object()
_MEMBERS = {"execute": (str, "a string"), "arguments": (Mapping, "an object")}


class _Capabilities(Model, frozen=True):
    enable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """A command to be run, with its checked arguments."""

    command: QmpCommand
    arguments: Any
    id: Any

    def run(self) -> tuple[Answer, bool]:
        """Runs it; the answer, and whether it is a success. Never raises an Exception: a fault of
        the handler's is an error object and a traceback in the log."""
        try:
            return _with_id({"return": self.command.call(self.arguments)}, self.id), True
        except QmpError as error:
            return failure(error, self.id), False
        except Exception as error:
            log.exception("command %s", self.command.name)
            text = f"{self.command.name}: internal fault: {type(error).__name__}: {error}"
            return failure(QmpError(text), self.id), False


class Session:
    """A connection's state: whether capabilities are negotiated."""

    def __init__(self, table: CommandTable) -> None:
        self._table = table
        #: After qmp_capabilities: commands are taken and events are sent.
        self.ready = False

    def request(self, value: bytes) -> Call | Answer:
        """What a client sent: a call to be run, or an answer that needs no more."""
        try:
            raw = msgspec.json.decode(value)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return failure(QmpError(f"JSON parse error, {error}"))
        if not isinstance(raw, dict):
            return failure(QmpError("QMP input must be a JSON object"))
        request_id = raw.pop("id", _NO_ID)
        try:
            return self._request(raw, request_id)
        except QmpError as error:
            return failure(error, request_id)
        except Exception as error:
            log.exception("a request that was not understood")
            return failure(QmpError(f"internal fault: {type(error).__name__}"), request_id)

    def _request(self, raw: dict[str, Any], request_id: Any) -> Call | Answer:
        for member, value in raw.items():
            if member not in _MEMBERS:
                raise QmpError(f"QMP input member '{member}' is unexpected")
            kind, called = _MEMBERS[member]
            if not isinstance(value, kind):
                raise QmpError(f"QMP input member '{member}' must be {called}")
        if "execute" not in raw:
            raise QmpError("QMP input lacks member 'execute'")
        name, arguments = raw["execute"], raw.get("arguments", {})
        if name == CAPABILITIES:
            self._negotiate(arguments)
            return _with_id({"return": {}}, request_id)
        if not self.ready:
            raise CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
        command = self._table[name]
        return Call(command, command.parse(arguments), request_id)

    def _negotiate(self, arguments: Any) -> None:
        if self.ready:
            raise CommandNotFound("Capabilities negotiation is already complete, command ignored")
        for capability in convert(arguments, _Capabilities).enable:
            raise QmpError(f"Capability {capability} not available")
        self.ready = True


def greeting() -> Answer:
    """What a server says first. There is no other place for a version than QEMU's: it is ours."""
    return {"QMP": {"version": version(), "capabilities": []}}


def version() -> Answer:
    """VersionInfo of QEMU's qapi/control.json, with this package's version."""
    text = importlib.metadata.version("vduse")
    numbers = [int(number) for number in re.findall(r"\d+", text)[:3]]
    major, minor, micro = [*numbers, 0, 0, 0][:3]
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": f"vduse {text}"}


def failure(error: QmpError, request_id: Any = _NO_ID) -> Answer:
    """An error's answer."""
    return _with_id({"error": error.answer()}, request_id)


def _with_id(answer: Answer, request_id: Any) -> Answer:
    return answer if request_id is _NO_ID else {**answer, "id": request_id}
