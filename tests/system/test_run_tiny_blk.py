"""A daemon in C on Linux's headers alone (tests/daemons/tiny_blk.c), under the supervisor of
`vduse run`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.hand_driver import IN, OUT, hand_driver
from tests.daemons.build import build_tiny_blk
from tests.system.run_stage import Program
from vduse.control.features import Feature
from vduse.exports.vhost_user import VhostUserServer
from vduse.framework import Framework
from vduse.testing.arena import ArenaBlk
from vduse.testing.load import Spec, run_ours, run_vhost_user, run_virtio_drivers

pytestmark = pytest.mark.needs("cc")

NAME = "tiny"
QUEUES = 2
MIB = 1 << 20
LOAD = Spec(op="mixed", requests=2000, depth=16, verify=True, span=MIB)


@pytest.fixture(scope="module")
def tiny_blk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program."""
    return build_tiny_blk(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["6.12", "7.2"])
def framework(request: pytest.FixtureRequest) -> Iterator[Framework]:
    """In either kernel's profile."""
    with Framework(request.param) as framework:
        yield framework


class Daemon:
    """tiny_blk on an image of 16 MiB, which outlives it."""

    def __init__(self, framework: Framework, tiny_blk: Path, image: Path) -> None:
        self._argv = [str(tiny_blk), NAME, str(image)]
        self._framework = framework
        self.image = image
        with image.open("wb") as file:
            file.truncate(16 * MIB)
        self.program = self._start()

    def _start(self) -> Program:
        program = Program(self._framework, self._argv)
        program.wait_set_up()
        return program

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.program.supervised.pid, signal.SIGKILL)
        assert self.program.wait() == -signal.SIGKILL
        self.program.close()

    def end(self) -> None:
        """SIGTERM."""
        os.kill(self.program.supervised.pid, signal.SIGTERM)
        assert self.program.wait() == 0
        self.program.close()

    def start(self) -> None:
        """Again."""
        self.program = self._start()


@pytest.fixture
def daemon(framework: Framework, tiny_blk: Path, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(framework, tiny_blk, tmp_path / "image")
    yield daemon
    daemon.program.close()


def test_it_serves_our_driver_and_two_of_others(
    framework: Framework, daemon: Daemon, tmp_path: Path
) -> None:
    """One after the other, a reset and a rebinding between them."""
    framework.dev_add(NAME)
    reports = [run_ours(framework.disk(NAME).driver, LOAD)]
    framework.bus.bind(NAME, "vhost_vdpa")
    with closing(framework.bus.vhost(NAME).open()) as driver, ArenaBlk(driver, QUEUES) as arena:
        reports.append(run_ours(arena.native, LOAD, arena.arena))
    path = str(tmp_path / "vhost.sock")
    with VhostUserServer(framework.bus.vhost(NAME), path, name=NAME):
        reports.append(run_vhost_user(path, LOAD, queues=QUEUES))
    framework.dev_del(NAME)
    reports.append(run_virtio_drivers(framework.dev_add(NAME, driver=None), LOAD))
    framework.dev_del(NAME)
    assert [report.messages for report in reports] == [()] * 4
    assert {report.requests for report in reports} == {LOAD.requests}


def test_what_it_was_given_is_in_its_image(framework: Framework, daemon: Daemon) -> None:
    framework.dev_add(NAME)
    disk = framework.disk(NAME)
    assert disk.size == 16 * MIB
    assert disk.serial() == "tiny_blk"
    data = os.urandom(1 * MIB)
    disk.pwrite(data, 3 * MIB)
    disk.flush()
    assert daemon.image.read_bytes()[3 * MIB : 4 * MIB] == data
    assert disk.pread(MIB, 3 * MIB) == data
    assert not disk.read_only


def test_requests_survive_its_death(framework: Framework, daemon: Daemon) -> None:
    """Whatever the moment: each is completed, once."""
    framework.dev_add(NAME)
    disk = framework.disk(NAME)
    size = 64 << 10
    written = 0
    for round_number in range(6):
        batch = [
            ("write", at * size, at.to_bytes(8, "little") * (size // 8))
            for at in range(written, written + 32)
        ]
        tokens = set(disk.submit(batch))
        written += len(batch)
        if round_number % 2:
            for token, result in disk.reap(1):
                assert result == size
                tokens.remove(token)
        daemon.kill()
        daemon.start()
        while tokens:
            for token, result in disk.reap(1):
                assert result == size
                tokens.remove(token)
    image = daemon.image.read_bytes()
    for at in range(written):
        expected = at.to_bytes(8, "little") * (size // 8)
        assert image[at * size : (at + 1) * size] == expected, at


def test_its_device_goes_with_it_but_not_from_the_bus(framework: Framework, daemon: Daemon) -> None:
    framework.dev_add(NAME)
    daemon.end()
    assert NAME in framework.devices
    daemon.start()
    framework.dev_del(NAME)
    daemon.end()
    assert NAME not in framework.devices


def test_a_queue_that_is_enabled_late(framework: Framework, daemon: Daemon) -> None:
    """It hears of it by the first kick."""
    framework.dev_add(NAME, driver="vhost_vdpa")
    with (
        closing(framework.bus.vhost(NAME).open()) as driver,
        hand_driver(driver, packed=False, queues=QUEUES) as hand,
    ):
        hand.start(0)
        hand.offer(1, 0, IN, 0)
        hand.driver.set_vring_enable(1, True)
        hand.kick(1)
        assert hand.reap(1, 1) == [0]
        hand.offer(0, 0, OUT, 0)
        hand.kick(0)
        assert hand.reap(0, 1) == [0]
        assert (hand.status(0, 0), hand.status(1, 0)) == (0, 0)


def test_features_that_it_does_not_know_are_refused(framework: Framework, daemon: Daemon) -> None:
    framework.dev_add(NAME, driver="vhost_vdpa")
    with closing(framework.bus.vhost(NAME).open()) as driver:
        driver.set_status(3)
        driver.set_features(driver.get_features() | Feature.RING_PACKED)
        driver.set_status(0xB)
        assert driver.get_status() == 3
