"""The objects by id."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from vduse.control.spelling import did_you_mean
from vduse.daemon.qmp.arguments import convert
from vduse.daemon.qmp.errors import DeviceNotFound, QmpError
from vduse.daemon.storage.ids import is_id
from vduse.daemon.storage.objects.options import Object
from vduse.daemon.storage.objects.throttle_group import ThrottleGroup, ThrottleLimits
from vduse.daemon.storage.objects.types import TYPES

assert TYPES  # the import makes ObjectOptions stand for all of them

AnyObject = TypeVar("AnyObject", bound=Object)

_FOLDER = "/objects/"
_LIMITS = "limits"


class Objects:
    """Changes and looks are the caller's to keep apart."""

    def __init__(self) -> None:
        self._objects: dict[str, Object] = {}

    def check(self, name: str) -> None:
        """QmpError: no object can be called so."""
        if not is_id(name):
            raise QmpError("Parameter 'id' expects an identifier")
        if name in self._objects:
            raise QmpError(
                f"attempt to add duplicate property '{name}' to object (type 'container'): there "
                "is an object of that id"
            )

    def add(self, made: Object) -> None:
        """One whose name was checked."""
        self._objects[made.options.id] = made

    def remove(self, name: str) -> None:
        """One that nothing uses. QmpError."""
        found = self._objects.get(name)
        if found is None:
            raise QmpError(f"object '{name}' not found")
        for user in sorted(found.users):
            raise QmpError(f"object '{name}' is in use, can not be deleted: by {user}")
        del self._objects[name]

    def find(self, name: str, kind: type[AnyObject]) -> AnyObject:
        """QmpError: there is none of that id and type."""
        found = self._objects.get(name)
        if not isinstance(found, kind):
            fitting = [each for each, of in self._objects.items() if isinstance(of, kind)]
            before, after = kind.missing
            raise QmpError(f"{before}{name}{after}{did_you_mean(name, fitting)}")
        return found

    def get(self, path: str, name: str) -> dict[str, Any]:
        """A property. QmpError."""
        limits: dict[str, Any] = msgspec.to_builtins(self._with_limits(path, name).limits)
        return limits

    def set(self, path: str, name: str, value: dict[str, Any]) -> None:
        """Another value of a property; what is not given stays as it is. QmpError."""
        group = self._with_limits(path, name)
        group.limits = convert({**self.get(path, name), **value}, ThrottleLimits)

    def _with_limits(self, path: str, name: str) -> ThrottleGroup:
        found = self._objects.get(path.removeprefix(_FOLDER))
        if found is None:
            hint = did_you_mean(path, [*self._objects, *(_FOLDER + i for i in self._objects)])
            raise DeviceNotFound(f"Device '{path}' not found{hint}")
        if not isinstance(found, ThrottleGroup) or name != _LIMITS:
            raise QmpError(f"Property '{found.options.qom_type}.{name}' not found")
        return found
