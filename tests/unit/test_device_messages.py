"""A device's control path against a scripted framework and a data path without requests."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.device_fakes import FakeChannel, FakeControl, FakeDataPath
from vduse.channel.base import EXT_CALLFD, EXT_INFLIGHT
from vduse.control.abi import (
    GetVqState,
    RequestResult,
    SetStatus,
    SetVqGroupAsid,
    UnknownMessage,
    UpdateCallfd,
    UpdateIotlb,
    decode_vq_state,
    encode_vq_state,
)
from vduse.control.features import DeviceId, Feature
from vduse.device.attach import ConfigMismatch
from vduse.device.control_thread import ControlThread
from vduse.device.device import Device, DeviceError
from vduse.device.queues import QueueError
from vduse.device.spec import DeviceSpec

FEATURES = int(Feature.VERSION_1 | Feature.ACCESS_PLATFORM)
EXTENSIONS = (EXT_CALLFD, EXT_INFLIGHT)
OK, FAILED = RequestResult.OK, RequestResult.FAILED


def spec(queues: int = 2, *, api_version: int = 0) -> DeviceSpec:
    """A device that takes FEATURES only."""
    return DeviceSpec(
        name="dev",
        device_id=DeviceId.BLOCK,
        features=FEATURES | Feature.RING_PACKED,
        queue_sizes=(8,) * queues,
        config=bytes(16),
        check_features=lambda chosen: None if chosen & FEATURES == FEATURES else "VERSION_1",
        api_version=api_version,
    )


class Rig:
    """A device under test with everything around it."""

    def __init__(
        self,
        *,
        existing: bool = False,
        queues: int = 2,
        framework_queues: int = 2,
        extensions: tuple[str, ...] = EXTENSIONS,
        api_version: int = 0,
    ) -> None:
        self.thread = ControlThread()
        self.channel = FakeChannel(framework_queues, config=bytes(16), extensions=extensions)
        self.control = FakeControl(self.channel, existing=existing)
        self.path = FakeDataPath()
        self.device = Device(
            spec(queues, api_version=api_version),
            lambda _: self.path,
            thread=self.thread,
            drain_timeout=0.5,
        )

    def live(self, *ready: int, features: int = FEATURES) -> None:
        """Starts the device and takes it through virtio-vdpa's probe; ``ready`` queues run."""
        self.device.start(self.control)
        self.probe(*ready, features=features)

    def probe(self, *ready: int, features: int = FEATURES) -> None:
        """The statuses of a probe, each answered OK."""
        self.channel.features = features
        for status in (0, 1, 3, 0xB):
            assert self.channel.ask(SetStatus(status)).result == OK
        for index in ready:
            self.channel.set_up(index)
        assert self.channel.ask(SetStatus(0xF)).result == OK
        self.channel.driver_ok = True

    def settle(self) -> None:
        """Everything posted to the control thread until now has run."""
        self.thread.call(lambda: None)


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(**options))
        return made[-1]

    yield make
    for rig in made:
        rig.path.resets = rig.path.drains = True
        rig.device.close()
        rig.thread.close()
        rig.channel.dispose()
        rig.path.dispose()


@pytest.fixture
def rig(rigs: Callable[..., Rig]) -> Rig:
    return rigs()


# --- start ------------------------------------------------------------------------------


def test_start_creates_the_device_and_sets_its_queues_up(rig: Rig) -> None:
    assert rig.device.start(rig.control) is False
    assert rig.control.version == 0
    assert rig.control.created == spec().dev_config()
    assert rig.channel.max_sizes == [8, 8]


def test_api_version_1_has_one_group_and_one_address_space(rigs: Callable[..., Rig]) -> None:
    rig = rigs(api_version=1)
    rig.device.start(rig.control)
    assert rig.control.version == 1
    assert rig.control.created is not None
    assert (rig.control.created.ngroups, rig.control.created.nas) == (1, 1)


def test_device_starts_once(rig: Rig) -> None:
    rig.device.start(rig.control)
    with pytest.raises(DeviceError, match="dev is started"):
        rig.device.start(rig.control)


def test_a_start_that_fails_leaves_no_device_behind(rig: Rig) -> None:
    def no_data_path(resolver: object) -> FakeDataPath:
        raise ValueError("no such limits")

    device = Device(spec(), no_data_path)
    with pytest.raises(ValueError, match="no such limits"):
        device.start(rig.control)
    assert rig.control.destroyed


# --- SET_STATUS -------------------------------------------------------------------------


def test_driver_ok_starts_the_ready_queues_only(rig: Rig) -> None:
    rig.live(1)
    assert rig.path.running == {1}
    started = rig.path.started[1]
    assert (started.size, started.features) == (8, FEATURES)
    assert started.areas == (0x1000, 0x2000, 0x3000)
    assert started.state == (0,)
    assert started.has_callfd
    assert started.inflight_offset == 64 + 16 * 8


def test_ready_queue_without_a_size_is_not_in_use(rig: Rig) -> None:
    """QEMU makes every queue ready, though its guest's firmware has set up one."""
    rig.device.start(rig.control)
    rig.channel.set_up(1, num=0)
    rig.probe(0)
    assert rig.path.running == {0}
    rig.channel.set_up(1)
    os.eventfd_write(rig.channel.kickfds[1], 1)
    rig.path.wait_running(0, 1)


def test_packed_queue_starts_from_packed_state(rig: Rig) -> None:
    rig.device.start(rig.control)
    position = encode_vq_state((5, 1, 4, 1))
    rig.channel.infos[0] = type(rig.channel.infos[0])(0, state=position)
    rig.probe(0, features=FEATURES | Feature.RING_PACKED)
    assert rig.path.started[0].state == (5, 1, 4, 1)


def test_without_extensions_irqs_go_by_ioctl_and_there_is_no_record(
    rigs: Callable[..., Rig],
) -> None:
    rig = rigs(extensions=())
    rig.live(0)
    assert not rig.path.started[0].has_callfd
    assert rig.path.started[0].inflight_offset is None


def test_features_ok_is_refused_for_features_that_cannot_be(rig: Rig) -> None:
    rig.device.start(rig.control)
    rig.channel.features = int(Feature.ACCESS_PLATFORM)
    rig.channel.ask(SetStatus(1))
    rig.channel.ask(SetStatus(3))
    assert rig.channel.ask(SetStatus(0xB)).result == FAILED
    rig.channel.features = FEATURES
    assert rig.channel.ask(SetStatus(0xB)).result == OK


def test_illegal_status_is_refused_and_changes_nothing(rig: Rig) -> None:
    rig.live(0)
    assert rig.channel.ask(SetStatus(0xB)).result == FAILED
    assert rig.path.running == {0}


def test_driver_ok_is_refused_for_a_queue_larger_than_offered(rig: Rig) -> None:
    rig.device.start(rig.control)
    rig.channel.features = FEATURES
    for status in (1, 3, 0xB):
        rig.channel.ask(SetStatus(status))
    rig.channel.set_up(0)
    rig.channel.set_up(1, num=9)
    assert rig.channel.ask(SetStatus(0xF)).result == FAILED
    assert rig.path.running == set()
    rig.channel.reset()
    rig.probe(0)
    assert rig.path.running == {0}


def test_a_refused_status_of_many_bits_leaves_the_state_as_it_was(rig: Rig) -> None:
    rig.device.start(rig.control)
    assert rig.channel.ask(SetStatus(0xB)).result == FAILED, "no features were chosen"
    assert rig.channel.ask(SetStatus(1)).result == OK
    assert rig.channel.ask(SetStatus(3)).result == OK


def test_driver_ok_is_refused_where_the_data_path_cannot_start(rig: Rig) -> None:
    rig.device.start(rig.control)
    rig.path.refuses = 1
    rig.channel.features = FEATURES
    for status in (1, 3, 0xB):
        rig.channel.ask(SetStatus(status))
    rig.channel.set_up(0)
    rig.channel.set_up(1)
    assert rig.channel.ask(SetStatus(0xF)).result == FAILED
    assert rig.path.running == set()


def test_reset_stops_the_data_path_and_a_second_probe_starts_afresh(rig: Rig) -> None:
    rig.live(0)
    assert rig.channel.ask(SetStatus(0)).result == OK
    assert rig.path.running == set()
    rig.channel.reset()
    rig.probe(0)
    assert rig.path.running == {0}
    assert rig.channel.kickfds[1] >= 0


def test_reset_past_its_bound_is_not_answered_and_breaks_the_device(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.live(0)
    rig.path.resets = False
    rig.channel.send(SetStatus(0))
    with caplog.at_level(logging.ERROR):
        reason = rig.device.wait(60)
    assert reason == "reset: requests still use the driver's memory after 0.5 s"
    assert reason in caplog.text
    assert not rig.channel.closed, "a closed node's messages go to the next opener"
    with pytest.raises(DeviceError, match="the node stays open"):
        rig.device.close()


# --- other messages -----------------------------------------------------------------------


def test_get_vq_state_drains_and_says_where_the_queue_stands(rig: Rig) -> None:
    rig.live(0, 1)
    rig.path.position = (77,)
    response = rig.channel.ask(GetVqState(1))
    assert (response.result, response.vq_index) == (OK, 1)
    assert decode_vq_state(response.vq_state, packed=False) == (77,)
    assert rig.path.running == {0}
    assert rig.channel.ask(GetVqState(1)).vq_state == response.vq_state


def test_get_vq_state_of_a_queue_never_started_is_what_the_driver_set(rig: Rig) -> None:
    rig.live(0)
    assert decode_vq_state(rig.channel.ask(GetVqState(1)).vq_state, packed=False) == (0,)


def test_get_vq_state_of_no_queue_is_refused(rig: Rig) -> None:
    rig.live(0)
    assert rig.channel.ask(GetVqState(2)).result == FAILED


def test_stopped_queue_goes_on_where_it_stopped_when_kicked(rig: Rig) -> None:
    rig.live(0)
    os.eventfd_write(rig.channel.kickfds[0], 1)
    rig.path.position = (77,)
    rig.channel.ask(GetVqState(0))
    rig.settle()
    assert rig.path.running == set(), "a kick from before the stop does not start it"
    os.eventfd_write(rig.channel.kickfds[0], 1)
    rig.path.wait_running(0)
    assert rig.path.started[0].state == (77,)


def test_stopped_queue_goes_on_where_the_driver_says(rig: Rig) -> None:
    rig.live(0)
    rig.path.position = (77,)
    rig.channel.ask(GetVqState(0))
    rig.channel.infos[0] = type(rig.channel.infos[0])(
        0, 8, 0x1000, 0x2000, 0x3000, encode_vq_state((78,)), True
    )
    os.eventfd_write(rig.channel.kickfds[0], 1)
    rig.path.wait_running(0)
    assert rig.path.started[0].state == (78,)


def test_drain_past_its_bound_breaks_the_device(rig: Rig) -> None:
    rig.live(0)
    rig.path.drains = False
    rig.channel.send(GetVqState(0))
    assert rig.device.wait(60) == "virtqueue 0: requests still in flight after 0.5 s"


def test_late_enable_is_noticed_by_its_kick(rig: Rig) -> None:
    rig.live(0)
    os.eventfd_write(rig.channel.kickfds[1], 1)
    rig.settle()
    assert rig.path.running == {0}, "kicked, but not ready"
    rig.channel.set_up(1)
    os.eventfd_write(rig.channel.kickfds[1], 1)
    rig.path.wait_running(0, 1)


def test_update_iotlb_invalidates_and_acknowledges(rig: Rig) -> None:
    rig.live(0)
    assert rig.channel.ask(UpdateIotlb(0, 2**64 - 1)).result == OK
    assert rig.path.invalidated == [(0, 2**64 - 1)]


def test_update_iotlb_unacknowledged_is_not_answered(rig: Rig) -> None:
    rig.live(0)
    rig.path.acknowledges = False
    rig.channel.send(UpdateIotlb(0, 1))
    assert rig.device.wait(60) == "IOTLB update: not acknowledged in 0.5 s"


def test_update_callfd_reaches_running_queues(rig: Rig) -> None:
    rig.live(0)
    assert rig.channel.ask(UpdateCallfd(0)).result == OK
    assert rig.channel.ask(UpdateCallfd(1)).result == OK
    assert rig.channel.ask(UpdateCallfd(2)).result == FAILED
    assert rig.path.new_callfds == [0]


def test_set_vq_group_asid_knows_one_group_and_one_space(rigs: Callable[..., Rig]) -> None:
    rig = rigs(api_version=1)
    rig.device.start(rig.control)
    assert rig.channel.ask(SetVqGroupAsid(0, 0)).result == OK
    assert rig.channel.ask(SetVqGroupAsid(0, 1)).result == FAILED


def test_messages_not_of_this_version_are_refused(rig: Rig) -> None:
    rig.device.start(rig.control)
    assert rig.channel.ask(SetVqGroupAsid(0, 0)).result == FAILED
    assert rig.channel.ask(UnknownMessage(99, b"")).result == FAILED


# --- faults -------------------------------------------------------------------------------


def test_malformed_ring_stops_the_device_until_reset(rig: Rig) -> None:
    rig.live(0)
    rig.path.break_queue(0, "descriptor chain loops")
    rig.settle()
    assert rig.device.fault == "virtqueue 0: descriptor chain loops"
    assert rig.channel.ask(GetVqState(0)).result == FAILED
    os.eventfd_write(rig.channel.kickfds[1], 1)
    rig.settle()
    assert rig.channel.ask(SetStatus(0)).result == OK
    assert rig.device.fault is None
    rig.channel.reset()
    rig.probe(0)
    assert rig.path.running == {0}


def test_a_queue_that_broke_has_no_position_though_word_of_it_is_on_its_way(rig: Rig) -> None:
    """Where it was started it does not stand any more: the driver would be served twice."""
    rig.live(0)
    rig.path.stop_unannounced()
    assert rig.channel.ask(GetVqState(0)).result == FAILED
    assert decode_vq_state(rig.channel.ask(GetVqState(1)).vq_state, packed=False) == (0,)
    rig.path.break_queue(0, "descriptor chain loops")
    assert rig.channel.ask(GetVqState(0)).result == FAILED
    assert rig.channel.ask(SetStatus(0)).result == OK
    rig.channel.reset()
    rig.probe(0)
    assert rig.channel.ask(GetVqState(0)).result == OK


def test_word_of_a_fault_that_comes_after_the_reset_is_void(rig: Rig) -> None:
    rig.live(0)
    assert rig.channel.ask(SetStatus(0)).result == OK
    rig.path.break_queue(0, "descriptor chain loops")
    rig.settle()
    rig.settle()
    assert rig.device.fault is None


def test_exception_breaks_only_its_device(
    rigs: Callable[..., Rig], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = rigs(), rigs()
    whole.thread.close()
    whole.thread = broken.thread
    whole.device = Device(spec(), lambda _: whole.path, thread=broken.thread, drain_timeout=0.5)
    broken.live(0)
    whole.live(0)

    def fail(start: int, last: int, timeout: float) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(broken.path, "invalidate", fail)
    broken.channel.send(UpdateIotlb(0, 1))
    assert broken.device.wait(60) == "RuntimeError: a bug"
    assert "Traceback" in caplog.text
    assert whole.channel.ask(UpdateIotlb(0, 1)).result == OK
    assert whole.device.ended is None
    whole.device.close()
    whole.thread = ControlThread()


def test_framework_gone_ends_the_device(rig: Rig) -> None:
    rig.live(0)
    rig.channel.hang_up()
    assert rig.device.wait(60) == "the framework is gone: hung up"


# --- recovery and end ----------------------------------------------------------------------


def test_taking_over_a_live_driver_starts_its_ready_queues(rigs: Callable[..., Rig]) -> None:
    rig = rigs(existing=True)
    rig.channel.features = FEATURES
    rig.channel.set_up(0)
    assert rig.device.start(rig.control) is True
    assert rig.path.running == {0}
    assert rig.path.started[0].inflight_offset == 0
    assert rig.channel.max_sizes == [0, 0], "VQ_SETUP is for new devices"
    assert rig.channel.ask(SetStatus(0xF)).result == OK
    rig.channel.set_up(1)
    os.eventfd_write(rig.channel.kickfds[1], 1)
    rig.path.wait_running(0, 1)


def test_taking_over_a_live_driver_without_queues_sees_a_late_enable(
    rigs: Callable[..., Rig],
) -> None:
    rig = rigs(existing=True)
    rig.channel.features = FEATURES
    rig.channel.driver_ok = True
    rig.device.start(rig.control)
    assert rig.channel.config_irqs == 1, "the config space was written anew"
    rig.channel.set_up(1)
    os.eventfd_write(rig.channel.kickfds[1], 1)
    rig.path.wait_running(1)


def test_taking_over_before_the_driver_is_live_follows_its_next_status(
    rigs: Callable[..., Rig],
) -> None:
    rig = rigs(existing=True)
    rig.channel.features = FEATURES
    rig.device.start(rig.control)
    assert rig.path.running == set()
    rig.channel.set_up(0)
    assert rig.channel.ask(SetStatus(0xF)).result == OK
    assert rig.path.running == {0}


def test_taking_over_a_live_driver_needs_a_record(rigs: Callable[..., Rig]) -> None:
    rig = rigs(existing=True, extensions=())
    rig.channel.features = FEATURES
    rig.channel.set_up(0)
    with pytest.raises(QueueError, match="reset the driver"):
        rig.device.start(rig.control)
    assert rig.channel.closed


def test_taking_over_with_a_record_that_cannot_be_trusted_is_refused(
    rigs: Callable[..., Rig],
) -> None:
    rig = rigs(existing=True)
    rig.channel.features = FEATURES
    rig.channel.set_up(0)
    rig.channel.inflight_lost = True
    with pytest.raises(QueueError, match=r"no in-flight record says.*reset the driver"):
        rig.device.start(rig.control)
    assert rig.path.running == set()
    assert rig.channel.closed


@pytest.mark.parametrize("replayed", [True, False], ids=["unanswered", "answered"])
def test_taking_over_from_one_that_was_answering_a_reset(
    rigs: Callable[..., Rig], replayed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The rings are the driver's again, or will be: nothing is taken from them."""
    rig = rigs(existing=True)
    rig.channel.features = FEATURES
    rig.channel.set_up(0)
    rig.channel.driver_ok = True
    rig.channel.inflight_error = OSError(errno.ENODATA, "being reset")
    assert rig.device.start(rig.control) is True
    assert rig.path.running == set()
    # It looks the same where the record is not the last program's.
    assert "if requests wait, the last program kept its record in another" in caplog.text
    if replayed:
        assert rig.channel.ask(SetStatus(0)).result == OK
    rig.channel.reset()
    rig.probe(0)
    assert rig.path.running == {0}


def test_messages_that_the_last_program_left_unanswered(rigs: Callable[..., Rig]) -> None:
    """The framework sends them again, to a device that has taken over already."""
    rig = rigs(existing=True)
    rig.channel.features = FEATURES
    rig.channel.set_up(0)
    rig.channel.driver_ok = True
    rig.path.position = (7,)
    for message in (UpdateIotlb(0, 0xFFFF), GetVqState(0), SetStatus(0xF), SetStatus(0)):
        rig.channel.send(message)
    rig.device.start(rig.control)
    answers = [rig.channel.answer() for _ in range(4)]
    assert [answer.result for answer in answers] == [OK] * 4
    assert rig.path.invalidated == [(0, 0xFFFF)]
    assert decode_vq_state(answers[1].vq_state, False) == (7,)
    assert rig.channel.inflight_calls == [(FEATURES, False), None]


def test_driver_ok_begins_new_records_and_a_takeover_goes_on_from_them(
    rigs: Callable[..., Rig],
) -> None:
    first = rigs()
    first.live(0)
    assert first.channel.inflight_calls == [None, (FEATURES, True)]
    second = rigs(existing=True)
    second.channel.features = FEATURES
    second.channel.driver_ok = True
    second.device.start(second.control)
    assert second.channel.inflight_calls == [(FEATURES, False)]


def test_without_a_record_that_can_be_kept_a_driver_is_served(rigs: Callable[..., Rig]) -> None:
    rig = rigs()
    rig.channel.inflight_lost = True
    rig.live(0)
    assert rig.path.started[0].inflight_offset is None


def test_reset_whose_records_cannot_be_cleared_is_not_answered(rigs: Callable[..., Rig]) -> None:
    rig = rigs()
    rig.live(0)
    rig.channel.inflight_error = OSError(errno.EIO, "records")
    rig.channel.send(SetStatus(0))
    reason = rig.device.wait(60)
    assert reason is not None and "records" in reason


@pytest.mark.parametrize("queues", [1, 3])
def test_taking_over_with_other_queues_is_refused(rigs: Callable[..., Rig], queues: int) -> None:
    rig = rigs(existing=True, queues=queues)
    with pytest.raises(ConfigMismatch, match="device dev exists with other virtqueues"):
        rig.device.start(rig.control)
    assert rig.channel.closed


def test_close_drains_and_leaves_the_device(rig: Rig) -> None:
    rig.live(0, 1)
    rig.device.close()
    assert rig.path.closed
    assert rig.channel.closed
    assert not rig.control.destroyed
    assert rig.device.ended == "closed"


def test_destroy_after_close(rig: Rig) -> None:
    rig.live(0)
    rig.device.close()
    rig.device.destroy()
    assert rig.control.destroyed


def test_set_config_tells_a_live_driver(rig: Rig) -> None:
    rig.device.start(rig.control)
    rig.device.set_config(0, b"\1")
    assert (rig.channel.config[0], rig.channel.config_irqs) == (1, 0)
    rig.probe()
    rig.device.set_config(1, b"\2")
    assert (rig.channel.config[1], rig.channel.config_irqs) == (2, 1)
