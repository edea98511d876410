"""The states of a device as a table: which status bit leads where, and what the device does.

Nothing here does I/O. A driver writes a whole status byte; :func:`steps` reads it as the bits it
adds, in the order of virtio 1.3, section 3.1.1, each of them one row of :data:`TRANSITIONS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vduse.control.features import Status


class DeviceState(Enum):
    """What the status byte means to the device."""

    RESET = "reset"
    ACKNOWLEDGED = "acknowledged"
    DRIVER = "driver"
    NEGOTIATED = "negotiated"
    LIVE = "live"
    FAILED = "failed"


class Action(Enum):
    """What the device does before it answers."""

    NONE = "nothing"
    CHECK_FEATURES = "checks the driver's features"
    START_QUEUES = "starts the ready virtqueues"
    RESET = "stops all virtqueues, drops all mappings"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row. ``bit`` None: the status byte 0."""

    state: DeviceState
    bit: Status | None
    to: DeviceState
    action: Action


class IllegalStatus(ValueError):
    """A status byte that no driver may write in this state."""


_S = DeviceState

TRANSITIONS: tuple[Transition, ...] = (
    Transition(_S.RESET, Status.ACKNOWLEDGE, _S.ACKNOWLEDGED, Action.NONE),
    Transition(_S.ACKNOWLEDGED, Status.DRIVER, _S.DRIVER, Action.NONE),
    Transition(_S.DRIVER, Status.FEATURES_OK, _S.NEGOTIATED, Action.CHECK_FEATURES),
    Transition(_S.NEGOTIATED, Status.DRIVER_OK, _S.LIVE, Action.START_QUEUES),
    *(
        Transition(state, Status.FAILED, _S.FAILED, Action.NONE)
        for state in DeviceState
        if state is not _S.FAILED
    ),
    *(Transition(state, None, _S.RESET, Action.RESET) for state in DeviceState),
)

_TABLE = {(row.state, row.bit): row for row in TRANSITIONS}

#: The order in which a driver that sets several bits at once has set them.
BIT_ORDER = (
    Status.ACKNOWLEDGE,
    Status.DRIVER,
    Status.FEATURES_OK,
    Status.DRIVER_OK,
    Status.FAILED,
)


def steps(state: DeviceState, old: int, new: int) -> list[Transition]:
    """The rows that lead from status byte ``old`` in ``state`` to status byte ``new``.

    Writing what is there already is no step. IllegalStatus: bits were taken away without a
    reset, a bit is not in the table, or it comes too early.
    """
    if new == 0:
        return [_TABLE[state, None]]
    if old & ~new:
        raise IllegalStatus(f"status {old:#x} -> {new:#x} takes bits away")
    added = new & ~old
    rows: list[Transition] = []
    for bit in BIT_ORDER:
        if not added & bit:
            continue
        added &= ~bit
        row = _TABLE.get((state, bit))
        if row is None:
            raise IllegalStatus(f"status {old:#x} -> {new:#x}: {bit.name} while {state.value}")
        rows.append(row)
        state = row.to
    if added:
        raise IllegalStatus(f"status {old:#x} -> {new:#x}: unknown bits {added:#x}")
    return rows
