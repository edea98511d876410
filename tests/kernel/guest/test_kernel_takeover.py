"""Nothing is lost when a disk's program dies under a live driver and is started again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.guest.bed import MIB, run
from tests.kernel.guest.forked import Command
from tests.waiting import eventually
from vduse import _native
from vduse.control.features import Feature
from vduse.vdpa.drivers import VdpaBus
from vduse.vdpa.users import requests_in_flight

pytestmark = [
    pytest.mark.usefixtures("modules"),
    pytest.mark.timeout(300),
    pytest.mark.needs("fio"),
]

RINGS = [pytest.param(False, id="split"), pytest.param(True, id="packed")]
RECORD = Path("/run/vduse/disk0.inflight")
QUEUES, QUEUE_SIZE = 2, 64
DEPTH = 32
#: Bytes that fio writes, and requests that takes: as many writes as reads that verify them.
SPAN = 4 * MIB
REQUESTS = 2 * SPAN // 4096

#: A program whose requests come back in another order than they came.
SHUFFLED = "delay,all=0ms..4ms"
#: A program that takes writes and completes none; the kernel reads a new disk before it shows it.
STUCK = "delay,write=1000s"


class Disk:
    """disk0 on an image, and the program that serves it now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.log = folder / "log"
        self.image = folder / "image"
        with self.image.open("wb") as file:
            file.truncate(16 * MIB)
        self._command: Command | None = None
        self._packed = False

    def start(self, layer: str = SHUFFLED, *, packed: bool = False) -> str:
        """`vduse blk`, with a layer on the image; the node."""
        self._packed = packed
        argv = ["blk", str(self.image), "--json", "-v", "--via", "kernel", "--layer", layer]
        argv += ["--queues", str(QUEUES), "--queue-size", str(QUEUE_SIZE)]
        argv += ["--packed"] if packed else []
        self._command = Command(argv, self._folder / "output", self.log)
        try:
            [serving, *_] = eventually(self._command.lines, "the disk")
        except ChildProcessError as error:
            raise AssertionError(self.log.read_text()) from error
        node: str = json.loads(serving)["node"]
        return node

    def start_again(self) -> str:
        """As it was, but for the layer."""
        return self.start(packed=self._packed)

    def stop(self) -> None:
        """SIGSTOP: the driver's requests pile up."""
        assert self._command is not None
        self._command.send(signal.SIGSTOP)

    def end(self, number: signal.Signals) -> int | None:
        """Sends a signal and waits for the end; the exit status."""
        assert self._command is not None
        return self._command.end(number)

    def close(self) -> None:
        """For a test that fails."""
        if self._command is not None:
            self._command.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.close()


def fio(node: str, *words: str) -> list[str]:
    """The command: random writes, then every block is read back and has its checksum."""
    return [
        *("fio", "--name=job", f"--filename={node}", f"--size={SPAN}", "--bs=4k"),
        *("--rw=randwrite", "--ioengine=libaio", "--direct=1", f"--iodepth={DEPTH}"),
        *("--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", *words),
    ]


def in_record(packed: bool) -> int:
    """Requests in flight by the record: vhost-user specification, "Inflight I/O tracking"."""
    features = Feature.VERSION_1 | (Feature.RING_PACKED if packed else 0)
    stride = _native.BlkDataPath.inflight_size(QUEUE_SIZE, features)
    header, state = (32, 32) if packed else (16, 16)
    data = RECORD.read_bytes()
    return sum(
        data[queue * stride + header + index * state]
        for queue in range(QUEUES)
        for index in range(QUEUE_SIZE)
    )


def has_come(node: str, requests: int) -> None:
    """Waits until the disk has completed so many."""

    def completed() -> int:
        fields = Path(f"/sys/block/{Path(node).name}/stat").read_text().split()
        return int(fields[0]) + int(fields[4])

    eventually(lambda: completed() >= requests, f"{requests} requests")


def is_gone(node: str) -> bool:
    """Off the bus, out of /dev/vduse, and nothing left of it."""
    paths = (Path(node), Path("/dev/vduse/disk0"), RECORD)
    return VdpaBus().names() == [] and not any(map(Path.exists, paths))


@contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program beside; it must succeed."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            yield process
            output, _ = process.communicate()
        finally:
            process.kill()
    assert process.returncode == 0, output.decode()


@pytest.mark.parametrize("packed", RINGS)
def test_killed_at_depth_32_and_started_again(disk: Disk, packed: bool) -> None:
    """First with 32 requests that it has taken; then, a few times, wherever it is, and in turn
    with requests that it has not seen."""
    node = disk.start(STUCK, packed=packed)
    with running(fio(node)) as load:

        def is_caught() -> bool:
            # On a busy machine it may have come to its end before the disk was stopped.
            return requests_in_flight(node) > 0 or load.poll() is not None

        eventually(lambda: in_record(packed) == DEPTH, "requests on the record")
        disk.end(signal.SIGKILL)
        assert requests_in_flight(node) == DEPTH
        disk.start_again()
        moments = sorted(random.sample(range(1, REQUESTS * 9 // 10), 3))
        for turn, moment in enumerate(moments):
            has_come(node, moment)
            if turn % 2:
                disk.stop()
                eventually(is_caught, "requests in flight")
            disk.end(signal.SIGKILL)
            assert disk.start_again() == node
    run(*fio(node, "--verify_only=1"))
    assert in_record(packed) == 0
    taken_over = disk.log.read_text().count("taking over from a live driver's last device")
    assert taken_over == 1 + len(moments)
    assert disk.end(signal.SIGTERM) == 0
    assert is_gone(node)


def test_end_in_order_completes_everything(disk: Disk) -> None:
    """SIGTERM under load: served to the load's end, then off the bus and out of /dev/vduse."""
    node = disk.start()
    with running(fio(node)):
        has_come(node, REQUESTS // 10)
        assert disk.end(signal.SIGTERM) == 0
    assert is_gone(node)
    run(*fio(disk.start(), "--verify_only=1"))
    assert disk.end(signal.SIGTERM) == 0
