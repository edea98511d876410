"""The control path's tables, and the page drawn from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vduse.control import diagram
from vduse.control.abi import RequestType
from vduse.control.features import BlkFeature, DeviceId, Feature, Status, feature_names
from vduse.control.messages import message_allowed
from vduse.control.statuses import (
    TRANSITIONS,
    Action,
    DeviceState,
    IllegalStatus,
    steps,
)


def test_docs_page_is_drawn_from_the_tables() -> None:
    page = Path(__file__).parents[2] / "docs" / "control-path.md"
    assert page.read_text() == diagram.page()


def test_status_sequence_of_virtio_vdpa_probe() -> None:
    state, old, actions = DeviceState.RESET, 0, []
    for new in (0, 1, 3, 0xB, 0xF):
        for row in steps(state, old, new):
            state = row.to
            actions.append(row.action)
        old = new
    assert state is DeviceState.LIVE
    assert actions == [
        Action.RESET,
        Action.NONE,
        Action.NONE,
        Action.CHECK_FEATURES,
        Action.START_QUEUES,
    ]


def test_several_bits_at_once_are_their_steps_in_order() -> None:
    rows = steps(DeviceState.RESET, 0, 0xF)
    assert [row.to for row in rows] == [
        DeviceState.ACKNOWLEDGED,
        DeviceState.DRIVER,
        DeviceState.NEGOTIATED,
        DeviceState.LIVE,
    ]


def test_same_status_again_is_no_step() -> None:
    assert steps(DeviceState.LIVE, 0xF, 0xF) == []


@pytest.mark.parametrize(
    ("state", "old", "new", "why"),
    [
        (DeviceState.LIVE, 0xF, 0xB, "takes bits away"),
        (DeviceState.RESET, 0, Status.DRIVER, "DRIVER while reset"),
        (DeviceState.DRIVER, 3, 3 | Status.DRIVER_OK, "DRIVER_OK while driver"),
        (DeviceState.LIVE, 0xF, 0xF | Status.DEVICE_NEEDS_RESET, "unknown bits 0x40"),
        (DeviceState.LIVE, 0xF, 0xF | 0x10, "unknown bits 0x10"),
        (DeviceState.FAILED, 0x81, 0x83, "DRIVER while failed"),
    ],
)
def test_illegal_statuses(state: DeviceState, old: int, new: int, why: str) -> None:
    with pytest.raises(IllegalStatus, match=why):
        steps(state, old, new)


@given(st.sampled_from(DeviceState), st.integers(0, 255))
def test_reset_is_legal_everywhere(state: DeviceState, old: int) -> None:
    assert [row.to for row in steps(state, old, 0)] == [DeviceState.RESET]


def test_no_two_rows_for_one_bit_in_one_state() -> None:
    keys = [(row.state, row.bit) for row in TRANSITIONS]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("kind", "version", "state", "extensions", "allowed"),
    [
        (RequestType.SET_STATUS, 0, DeviceState.RESET, False, True),
        (RequestType.SET_VQ_GROUP_ASID, 0, DeviceState.DRIVER, False, False),
        (RequestType.SET_VQ_GROUP_ASID, 1, DeviceState.DRIVER, False, True),
        (RequestType.SET_VQ_GROUP_ASID, 1, DeviceState.LIVE, False, False),
        (RequestType.UPDATE_CALLFD, 0, DeviceState.LIVE, False, False),
        (RequestType.UPDATE_CALLFD, 0, DeviceState.LIVE, True, True),
        (17, 1, DeviceState.LIVE, True, False),
    ],
)
def test_which_messages_a_device_may_get(
    kind: int, version: int, state: DeviceState, extensions: bool, allowed: bool
) -> None:
    assert message_allowed(kind, version, state, extensions=extensions) is allowed


def test_feature_names_lowest_first_with_unknown_bits() -> None:
    features = Feature.VERSION_1 | BlkFeature.RO | 1 << 50
    assert feature_names(features, DeviceId.BLOCK) == ["RO", "VERSION_1", "bit 50"]
    assert feature_names(BlkFeature.RO, DeviceId.NET) == ["MAC"]
