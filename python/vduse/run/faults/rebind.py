"""The bus driver is unbound and bound."""

from __future__ import annotations

import threading

from vduse.run.faults.kind import Kind, Values
from vduse.run.faults.target import NotNow, Target


class Rebind:
    """As one writes the device's name to its driver's ``unbind`` and ``bind`` in sysfs."""

    def __init__(self, _values: Values) -> None:
        """No state."""

    def strike(self, target: Target, _stop: threading.Event) -> str:
        driver = target.driver
        if driver is None:
            raise NotNow(f"{target.name} is not bound")
        target.run.rebind(target.name, driver)
        return f"unbound from {driver} and bound to it"


KIND = Kind(
    name="rebind",
    summary="the bus driver is unbound and bound again",
    clients="connections end, new ones are served after it",
    make=Rebind,
)
