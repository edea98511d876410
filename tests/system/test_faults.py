"""Our own device bears what `vduse run --fault` does to it, with no byte lost."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.fault_stage import FaultStage
from tests.system.nbd_clients import fio_verified
from vduse.bus.errors import NoDriver
from vduse.control.abi import DevRequest, RequestResult
from vduse.control.features import Feature
from vduse.device.messages import MessageHandler
from vduse.exports.nbd import NbdServer
from vduse.testing.arena import ArenaBlk
from vduse.testing.harness import BlkSpec, Where
from vduse.testing.load import Report, Spec, run_ours

#: Each is checked; more of them follow until the faults have struck.
LOAD = Spec(op="mixed", requests=2000, depth=32, verify=True, span=2 << 20)

formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def spec(packed: bool, queues: int = 2) -> BlkSpec:
    return BlkSpec(queues=queues, packed=packed, size=8 << 20)


def check(report: Report) -> None:
    assert (report.requests, report.errors) == (LOAD.requests, 0), report.messages


@formats
@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ("reset:after=500,times=10", 10),
        ("remap:after=300,times=10", 10),
        ("move:after=300,times=9", 9),
        ("storm:messages=300,after=500,times=3", 3),
        ("silent:for=20ms,after=500,times=5", 5),
        ("late-enable:by=50ms,queue=0", 1),
    ],
)
def test_a_load_on_bounce_pages_is_right(fault: str, times: int, packed: bool) -> None:
    with FaultStage(spec(packed), [fault], "virtio_vdpa") as stage:
        with stage.striking() as strikes:
            check(run_ours(stage.framework.disk("disk0").driver, LOAD))
            while strikes.is_alive():
                check(run_ours(stage.framework.disk("disk0").driver, LOAD))
        assert (stage.outcome().ok, stage.strikes()) == (True, [times])
        assert stage.framework.device("disk0").stats()["bounce_bytes_in_use"] == 0


@formats
@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ("remap:after=20,times=10", 10),
        ("storm:messages=300,after=20,times=3", 3),
        ("late-enable:by=50ms,queue=0", 1),
    ],
)
def test_a_load_on_a_vhost_client_s_memory_is_right(fault: str, times: int, packed: bool) -> None:
    with FaultStage(spec(packed), [fault], "vhost_vdpa") as stage:
        with (
            closing(stage.framework.bus.vhost("disk0").open()) as driver,
            ArenaBlk(driver, stage.lines, without=0 if packed else Feature.RING_PACKED) as blk,
            stage.striking() as strikes,
        ):
            check(run_ours(blk.native, LOAD, blk.arena))
            while strikes.is_alive():
                check(run_ours(blk.native, LOAD, blk.arena))
        assert (stage.outcome().ok, stage.strikes()) == (True, [times])


@formats
def test_a_program_that_is_killed_loses_nothing(packed: bool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    on_file = BlkSpec(backend=f"file:{image}", queues=2, packed=packed)
    faults = ["kill:after=1500,times=5", "reset:after=400", "storm:every=50ms"]
    with FaultStage(on_file, faults, "virtio_vdpa", "child") as stage:
        with stage.striking() as strikes:
            while stage.kills < 5:
                check(run_ours(stage.framework.disk("disk0").driver, LOAD))
            assert strikes.is_alive()
        assert (stage.outcome().ok, stage.strikes()[:2]) == (True, [5, 1])


@formats
def test_a_program_that_is_killed_under_a_vhost_client_loses_nothing(
    packed: bool, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    on_file = BlkSpec(backend=f"file:{image}", queues=2, packed=packed)
    faults = ["kill:after=50,times=5", "storm:every=50ms", "remap:every=20ms"]
    with FaultStage(on_file, faults, "vhost_vdpa", "child") as stage:
        with (
            closing(stage.framework.bus.vhost("disk0").open()) as driver,
            ArenaBlk(driver, stage.lines, without=0 if packed else Feature.RING_PACKED) as blk,
            stage.striking(),
        ):
            while stage.kills < 5:
                check(run_ours(blk.native, LOAD, blk.arena))
        assert (stage.outcome().ok, stage.strikes()[0]) == (True, 5)


@pytest.mark.needs("fio")
@formats
def test_what_fio_wrote_over_nbd_it_reads_back(packed: bool, tmp_path: Path) -> None:
    """The driver's requests are an event loop's here, not a thread's that waits."""
    faults = [
        "reset:after=2000,times=20",
        "remap:every=30ms",
        "move:after=1500,times=20",
        "storm:every=50ms,messages=50",
        "silent:after=5000,times=5,for=30ms",
    ]
    disk = BlkSpec(queues=2, packed=packed, size=64 << 20)
    with (
        FaultStage(disk, faults, "virtio_vdpa") as stage,
        NbdServer(stage.framework.disk("disk0"), tmp_path / "disk.sock") as server,
    ):
        with stage.striking():
            for _ in range(3):
                assert fio_verified(server.uri, tmp_path, bs="4k", size="16m").error == 0
        outcome = stage.outcome()
        assert outcome.ok, outcome.lines
        assert all(stage.strikes()), outcome.lines


def test_a_device_that_ignores_update_iotlb_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def ignore(handler: MessageHandler, request: DevRequest, *_range: int) -> None:
        handler._answer(request, RequestResult.OK)

    monkeypatch.setattr(MessageHandler, "_update_iotlb", ignore)
    with FaultStage(spec(packed=False), ["move:after=1000"], "virtio_vdpa") as stage:
        with stage.striking() as strikes:
            errors = 0
            while strikes.is_alive() or not errors:
                errors += run_ours(stage.framework.disk("disk0").driver, LOAD).errors
        assert stage.strikes() == [1]


@formats
@pytest.mark.parametrize("where", ["process", "child"])
def test_all_faults_at_once(packed: bool, where: Where) -> None:
    faults = [
        "reset:after=700,times=5",
        "remap:after=400,times=5",
        "move:after=600,times=5",
        "storm:messages=100,after=900,times=3",
        "silent:for=10ms,after=800,times=3",
        "late-enable:by=10ms",
    ]
    with FaultStage(spec(packed), faults, "virtio_vdpa", where) as stage:
        with stage.striking() as strikes:
            while strikes.is_alive():
                check(run_ours(stage.framework.disk("disk0").driver, LOAD))
        assert stage.outcome().ok, stage.outcome().lines
        assert stage.strikes()[:5] == [5, 5, 5, 3, 3]


@formats
def test_what_was_written_before_a_rebind_is_there_after_it(packed: bool) -> None:
    blocks = 64
    with FaultStage(spec(packed), ["rebind:after=200,times=5"], "virtio_vdpa") as stage:
        may_hold = [{0} for _ in range(blocks)]
        stamp = 0
        with stage.striking() as strikes:
            while strikes.is_alive():
                stamp += 1
                block = stamp % blocks
                may_hold[block].add(stamp % 256)
                try:
                    stage.framework.disk("disk0").pwrite(bytes([stamp % 256]) * 4096, block * 4096)
                except NoDriver:
                    continue
                except OSError as error:
                    assert error.errno == errno.ENODEV
                    continue
                may_hold[block] = {stamp % 256}
        assert (stage.outcome().ok, stage.strikes()) == (True, [5])
        disk = stage.framework.disk("disk0")
        for block, stamps in enumerate(may_hold):
            data = disk.pread(4096, block * 4096)
            assert data in [bytes([held]) * 4096 for held in stamps]
