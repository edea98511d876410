"""A vDPA bus by QMP: its commands, and a client that speaks them."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec

from vduse.daemon.dev.face import Attributes, Changed, Details, Listing, VdpaFace
from vduse.daemon.errors import UserError
from vduse.daemon.qmp.arguments import Model
from vduse.daemon.qmp.errors import ErrorClass, QmpError
from vduse.daemon.qmp.table import QmpCommand

T = TypeVar("T")

#: Seconds for the server's greeting; it has one client at a time.
_GREETING_TIMEOUT = 5.0
#: Seconds for a command, which may wait for a device's program.
_ANSWER_TIMEOUT = 120.0
#: Bytes of an answer.
_LONGEST_LINE = 1 << 20

_ADVICE = {
    errno.ENOENT: "no such socket",
    errno.ECONNREFUSED: "nobody serves it any more",
    errno.EACCES: "permission denied: it is for the user of the vduse process that serves it",
}


class NameArguments(Model, frozen=True, kw_only=True):
    """Which device."""

    name: str


class LeaveArguments(NameArguments, frozen=True, kw_only=True):
    """It leaves its driver. ``force``: even where somebody uses the disk."""

    force: bool = False


class BindArguments(LeaveArguments, frozen=True, kw_only=True):
    """``driver``: virtio_vdpa or vhost_vdpa."""

    driver: str


class AddArguments(NameArguments, frozen=True, kw_only=True):
    """As :class:`~vduse.daemon.dev.face.Attributes`."""

    management: str = "vduse"
    driver: str | None = None
    features: int | None = None
    mac: str | None = None
    mtu: int | None = None
    max_vq_pairs: int | None = None


def commands(face: VdpaFace) -> tuple[QmpCommand, ...]:
    """The face's methods. Results have the fields of face.py."""

    def add(given: AddArguments) -> Changed:
        attributes = Attributes(given.features, given.mac, given.mtu, given.max_vq_pairs)
        return face.add(given.name, given.management, attributes, given.driver)

    return (
        QmpCommand(
            name="query-vdpa",
            doc="The devices, and what they are added to",
            run=_run(lambda _: face.list()),
            result=Listing,
        ),
        QmpCommand(
            name="query-vdpa-device",
            doc="One device: driver, features, config space",
            run=_run(lambda given: face.show(given.name)),
            arguments=NameArguments,
            result=Details,
        ),
        QmpCommand(
            name="vdpa-add",
            doc="Puts a device on the bus",
            run=_run(add),
            arguments=AddArguments,
            result=Changed,
        ),
        QmpCommand(
            name="vdpa-del",
            doc="Takes a device off the bus",
            run=_run(lambda given: face.delete(given.name, force=given.force)),
            arguments=LeaveArguments,
            result=Changed,
        ),
        QmpCommand(
            name="vdpa-bind",
            doc="Gives a device to a bus driver",
            run=_run(lambda given: face.bind(given.name, given.driver, force=given.force)),
            arguments=BindArguments,
            result=Changed,
        ),
        QmpCommand(
            name="vdpa-unbind",
            doc="Takes a device from its bus driver",
            run=_run(lambda given: face.unbind(given.name, force=given.force)),
            arguments=LeaveArguments,
            result=Changed,
        ),
    )


def _run(call: Callable[[Any], T]) -> Callable[[Any], T]:
    def run(given: Any) -> T:
        try:
            return call(given)
        except UserError as error:
            raise QmpError(str(error)) from error

    return run


class QmpFace:
    """A :class:`~vduse.daemon.dev.face.VdpaFace` of another process."""

    def __init__(self, path: str) -> None:
        """UserError: nobody serves ``path``, or not this."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._lines = self._socket.makefile("rb")
        with ExitStack() as undo:
            undo.callback(self.close)
            self._connect()
            undo.pop_all()

    def list(self) -> Listing:
        """query-vdpa."""
        return self._ask(Listing, "query-vdpa")

    def show(self, name: str) -> Details:
        """query-vdpa-device."""
        return self._ask(Details, "query-vdpa-device", name=name)

    def add(
        self, name: str, management: str, attributes: Attributes, driver: str | None
    ) -> Changed:
        """vdpa-add."""
        given = {key: value for key, value in asdict(attributes).items() if value is not None}
        if driver is not None:
            given["driver"] = driver
        return self._ask(Changed, "vdpa-add", name=name, management=management, **given)

    def delete(self, name: str, *, force: bool) -> Changed:
        """vdpa-del."""
        return self._ask(Changed, "vdpa-del", name=name, force=force)

    def bind(self, name: str, driver: str, *, force: bool) -> Changed:
        """vdpa-bind."""
        return self._ask(Changed, "vdpa-bind", name=name, driver=driver, force=force)

    def unbind(self, name: str, *, force: bool) -> Changed:
        """vdpa-unbind."""
        return self._ask(Changed, "vdpa-unbind", name=name, force=force)

    def close(self) -> None:
        """Ends the connection."""
        self._lines.close()
        self._socket.close()

    def _connect(self) -> None:
        path = self._path
        self._socket.settimeout(_GREETING_TIMEOUT)
        try:
            self._socket.connect(path)
            if "QMP" not in self._message():
                raise UserError(f"{path}: not QMP")
            self._execute("qmp_capabilities")
        except TimeoutError:
            raise UserError(f"{path}: does not answer: another QMP client has it") from None
        except OSError as error:
            why = _ADVICE.get(error.errno or 0, error.strerror or str(error))
            raise UserError(
                f"{path}: {why}; vduse blk IMAGE --nbd SOCKET --qmp {path} serves one"
            ) from None
        self._socket.settimeout(_ANSWER_TIMEOUT)

    def _ask(self, model: type[T], command: str, **arguments: Any) -> T:
        try:
            return msgspec.convert(self._execute(command, **arguments), model)
        except msgspec.ValidationError as error:
            raise UserError(f"{self._path}: not the answer of this version: {error}") from None
        except TimeoutError:
            raise UserError(
                f"{self._path}: {command} has not ended within {_ANSWER_TIMEOUT:g} s, and goes on"
            ) from None
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror}") from None

    def _execute(self, command: str, **arguments: Any) -> Any:
        dashed = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": dashed}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while "event" in (message := self._message()):
            pass
        if "return" in message:
            return message["return"]
        error = message.get("error")
        if not isinstance(error, dict):
            raise UserError(f"{self._path}: not QMP")
        if error.get("class") == ErrorClass.COMMAND_NOT_FOUND:
            raise UserError(f"{self._path}: serves QMP, but no vDPA bus")
        raise UserError(str(error.get("desc", "no answer")))

    def _message(self) -> dict[str, Any]:
        line = self._lines.readline(_LONGEST_LINE)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise UserError(f"{self._path}: {'not QMP' if line else 'the connection has ended'}")
        return message
