"""Which device is served where, as it was asked for."""

from __future__ import annotations

from collections.abc import Iterator

from vduse.daemon.doors.door import Door
from vduse.daemon.doors.nbd import NbdDoor
from vduse.daemon.doors.vhost_user import VhostUserDoor
from vduse.daemon.errors import UserError
from vduse.daemon.run.commands import NO_DRIVER, Place, RunOptions
from vduse.exports.errors import ExportError
from vduse.exports.listen import check_place

#: Who may connect, as of vduse blk.
_SOCKET_MODE = 0o600


class Places:
    """The doors of the command line, given out to devices as they come."""

    def __init__(self, options: RunOptions) -> None:
        """UserError: they contradict each other, or the driver."""
        self._named: dict[str, Door] = {}
        self._free: list[Door] = []
        self._taken: set[str] = set()
        doors = [
            *((place.name, _nbd(place)) for place in options.nbd),
            *((place.name, _vhost_user(place)) for place in options.vhost_user),
        ]
        for name, door in doors:
            if options.driver not in (None, door.driver):
                wanted = "no driver" if options.driver == NO_DRIVER else options.driver
                raise UserError(
                    f"{door.path} needs {door.driver}, not {wanted}: leave out --driver"
                )
            if name is None:
                self._free.append(door)
            elif name in self._named:
                raise UserError(f"{name} has one driver, so one socket at a time: leave one out")
            else:
                self._named[name] = door
        for _, door in doors:
            _check(door.path)
        paths = [door.path for _, door in doors]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise UserError(f"{twice}: one socket is one device's: name another path")

    def take(self, name: str) -> Door | None:
        """The door of the device that has just come: its own, or the first that is free. It is
        its own from then on."""
        if name not in self._named and self._free:
            self._named[name] = self._free.pop(0)
        self._taken.add(name)
        return self._named.get(name)

    def unused(self) -> Iterator[str]:
        """Those whose device has not come, in words."""
        for name, door in self._named.items():
            if name not in self._taken:
                came = ", ".join(sorted(self._taken)) or "none"
                yield f"nothing was served at {door.path}: no device {name} came, but {came}"
        for door in self._free:
            yield f"nothing was served at {door.path}: no device came for it"


def _check(path: str) -> None:
    """What can be known before there is a device. UserError."""
    try:
        check_place(path)
    except ExportError as error:
        raise UserError(str(error)) from None


def _nbd(place: Place) -> Door:
    return NbdDoor(place.path, mode=_SOCKET_MODE, description="")


def _vhost_user(place: Place) -> Door:
    return VhostUserDoor(place.path, mode=_SOCKET_MODE)
