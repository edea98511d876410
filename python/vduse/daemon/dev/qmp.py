"""A vDPA bus by QMP: its commands, and a client that speaks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec

from vduse.daemon.dev.face import Attributes, Changed, Details, Listing, VdpaFace
from vduse.daemon.errors import UserError
from vduse.daemon.qmp.arguments import Model
from vduse.daemon.qmp.client import QmpClient, UnknownCommand
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.qmp.table import QmpCommand

T = TypeVar("T")

#: Seconds for the server's greeting; it has one client at a time.
_GREETING_TIMEOUT = 5.0
#: Seconds for a command, which may wait for a device's program.
_ANSWER_TIMEOUT = 120.0


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
        self._client = QmpClient(
            path,
            timeout=_GREETING_TIMEOUT,
            served_by=f"vduse blk IMAGE --nbd SOCKET --qmp {path}",
        )

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
        self._client.close()

    def _ask(self, model: type[T], command: str, **arguments: Any) -> T:
        try:
            answer = self._client.execute(command, timeout=_ANSWER_TIMEOUT, **arguments)
            return msgspec.convert(answer, model)
        except UnknownCommand:
            raise UserError(f"{self._path}: serves QMP, but no vDPA bus") from None
        except msgspec.ValidationError as error:
            raise UserError(f"{self._path}: not the answer of this version: {error}") from None
