"""What a device does with UPDATE_LOG (docs/channel.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.test_device_messages import EXTENSIONS, FAILED, OK, Rig
from vduse.channel.base import EXT_LOG
from vduse.control.abi import DirtyLog, SetStatus, UpdateLog

LOG = DirtyLog(4096, 64, ((0, 0x3000),))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(extensions=(*EXTENSIONS, EXT_LOG))
    yield rig
    rig.device.close()
    rig.thread.close()
    rig.channel.dispose()
    rig.path.dispose()


def test_the_log_is_fetched_and_all_writes_are_marked_before_the_answer(rig: Rig) -> None:
    rig.live(0)
    assert rig.path.logs == []
    rig.channel.log = LOG
    assert rig.channel.ask(UpdateLog()).result == OK
    rig.channel.log = None
    assert rig.channel.ask(UpdateLog()).result == OK
    assert rig.path.logs == [(4096, 64, {0: 0x3000}), None]


def test_a_device_that_takes_over_marks_from_its_start(rig: Rig) -> None:
    rig.channel.log = LOG
    rig.device.start(rig.control)
    assert rig.path.logs == [(4096, 64, {0: 0x3000})]


def test_a_log_that_cannot_be_is_refused(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.live(0)
    rig.channel.log = LOG
    rig.path.refuses_logs = True
    assert rig.channel.ask(UpdateLog()).result == FAILED
    assert "dirty log refused" in caplog.text
    assert rig.channel.ask(SetStatus(0)).result == OK


def test_a_log_unacknowledged_is_not_answered(rig: Rig) -> None:
    rig.live(0)
    rig.channel.log = LOG
    rig.path.acknowledges = False
    rig.channel.send(UpdateLog())
    assert rig.device.wait(30) == "dirty log: not acknowledged in 0.5 s"
