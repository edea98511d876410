"""The messages a device gets, as a table: since which API version, and in which states."""

from __future__ import annotations

from dataclasses import dataclass

from vduse.control.abi import RequestType
from vduse.control.statuses import DeviceState

_ANY = frozenset(DeviceState)


@dataclass(frozen=True, slots=True)
class MessageRule:
    """One row."""

    type: RequestType
    #: First API version that has it.
    since: int
    #: States in which it may come.
    states: frozenset[DeviceState]
    #: What the device does before it answers OK.
    does: str
    #: Sent only where the device used an extension (docs/channel.md).
    extension: bool = False


MESSAGES: tuple[MessageRule, ...] = (
    MessageRule(
        RequestType.GET_VQ_STATE, 0, _ANY, "stops the virtqueue, drains it, says where it stands"
    ),
    MessageRule(RequestType.SET_STATUS, 0, _ANY, "takes the step of the status table"),
    MessageRule(RequestType.UPDATE_IOTLB, 0, _ANY, "lets go of the mappings in the range"),
    MessageRule(
        RequestType.SET_VQ_GROUP_ASID,
        1,
        # vhost-vdpa answers EBUSY under DRIVER_OK and never sends it.
        _ANY - {DeviceState.LIVE},
        "takes the group's mappings from another address space",
    ),
    MessageRule(
        RequestType.UPDATE_CALLFD,
        0,
        _ANY,
        "fetches the call fd again",
        extension=True,
    ),
    MessageRule(
        RequestType.UPDATE_KICKFD,
        0,
        _ANY,
        "asks for the driver's kick fd again",
        extension=True,
    ),
    MessageRule(
        RequestType.UPDATE_LOG,
        0,
        _ANY,
        "marks what it writes into the driver's memory where the new dirty log says",
        extension=True,
    ),
)

_RULES: dict[int, MessageRule] = {rule.type.value: rule for rule in MESSAGES}


def message_allowed(kind: int, version: int, state: DeviceState, *, extensions: bool) -> bool:
    """Whether a device of API ``version`` in ``state`` may get a message of this type."""
    rule = _RULES.get(kind)
    if rule is None or rule.since > version or (rule.extension and not extensions):
        return False
    return state in rule.states
