"""Which device a program gets: a new one, or the one that is there."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.device_fakes import FakeChannel, FakeControl
from vduse.control.features import DeviceId
from vduse.device.attach import ConfigMismatch, create_or_open
from vduse.device.spec import DeviceSpec

SPEC = DeviceSpec(
    name="dev",
    device_id=DeviceId.BLOCK,
    features=0,
    queue_sizes=(8, 8),
    config=bytes(16),
    check_features=lambda _: None,
    api_version=1,
)


def gone() -> OSError:
    return FileNotFoundError(errno.ENOENT, "no control node: modprobe")


def locked() -> OSError:
    return PermissionError(errno.EACCES, "not your control node")


def no_net_admin() -> OSError:
    return PermissionError(errno.EPERM, "CAP_NET_ADMIN")


#: How somebody may be kept from creating devices, by FakeControl's argument.
REFUSALS = [
    pytest.param("locked", gone, id="control node is missing"),
    pytest.param("locked", locked, id="control node is not ours"),
    pytest.param("refusal", no_net_admin, id="no capability"),
]


@pytest.fixture
def channels() -> Iterator[Callable[[int], FakeChannel]]:
    made: list[FakeChannel] = []

    def make(queues: int = 2) -> FakeChannel:
        made.append(FakeChannel(queues, config=bytes(16)))
        return made[-1]

    yield make
    for channel in made:
        channel.dispose()


@pytest.mark.parametrize(("argument", "refusal"), REFUSALS)
def test_who_may_create_nothing_takes_over_what_is_there(
    channels: Callable[..., FakeChannel], argument: str, refusal: Callable[[], OSError]
) -> None:
    control = FakeControl(channels(), existing=True, **{argument: refusal()})
    assert create_or_open(control, SPEC) == (control.channel, True)
    assert control.version == 1
    assert control.channel.max_sizes == [0, 0], "VQ_SETUP is for new devices"


@pytest.mark.parametrize(("argument", "refusal"), REFUSALS)
def test_who_may_create_nothing_is_told_why_where_there_is_nothing(
    channels: Callable[..., FakeChannel], argument: str, refusal: Callable[[], OSError]
) -> None:
    refused: dict[str, Any] = {argument: refusal()}
    control = FakeControl(channels(), **refused)
    with pytest.raises(OSError) as failed:
        create_or_open(control, SPEC)
    assert failed.value is refused[argument]


def test_who_may_create_nothing_takes_over_no_other_device(
    channels: Callable[..., FakeChannel],
) -> None:
    control = FakeControl(channels(3), existing=True, locked=locked())
    with pytest.raises(ConfigMismatch, match="other virtqueues"):
        create_or_open(control, SPEC)
    assert control.channel.closed
