"""The daemon in C that `vduse run` is tested with (tests/daemons/tiny_blk.c), on the kernel itself:
it is one that Linux takes, too."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons.build import build_tiny_blk
from tests.kernel.guest.bed import MIB, node_of, read_direct, write_direct
from tests.waiting import eventually
from vduse.vdpa.drivers import VdpaBus
from vduse.vdpa.netlink import VdpaManagement
from vduse.vdpa.users import requests_in_flight

pytestmark = [
    pytest.mark.usefixtures("modules"),
    pytest.mark.timeout(300),
    pytest.mark.needs("cc"),
]

NAME = "tiny"
NODE = Path("/dev/vduse", NAME)


class Daemon:
    """tiny_blk on an image of 16 MiB."""

    def __init__(self, tiny_blk: Path, image: Path) -> None:
        image.write_bytes(bytes(16 * MIB))
        self._argv = [str(tiny_blk), NAME, str(image)]
        self.start()

    def start(self) -> None:
        """Again, after its end."""
        self.process = subprocess.Popen(self._argv)

    def add(self) -> str:
        """Puts the disk on the vDPA bus; its node."""

        def added() -> bool:
            with VdpaManagement() as vdpa:
                try:
                    vdpa.add(NAME)
                except OSError:
                    assert self.process.poll() is None
                    return False
            return True

        eventually(added, "virtqueues that are set up")
        return node_of(NAME)

    def end(self) -> int:
        """SIGTERM; its exit code."""
        self.process.terminate()
        return self.process.wait()


@pytest.fixture(scope="module")
def tiny_blk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_blk(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def daemon(tiny_blk: Path, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tiny_blk, tmp_path / "image")
    yield daemon
    if NAME in VdpaBus().names():
        with VdpaManagement() as vdpa:
            vdpa.delete(NAME)
    assert daemon.end() == 0
    assert not NODE.exists()


def test_it_serves_the_kernels_driver(daemon: Daemon) -> None:
    node = daemon.add()
    data = os.urandom(MIB)
    write_direct(node, 2 * MIB, data)
    assert read_direct(node, 2 * MIB, MIB) == data


def test_a_successor_goes_on_where_it_was_killed(daemon: Daemon) -> None:
    """With writes under way."""
    node = daemon.add()
    data = os.urandom(8 * MIB)
    writing = subprocess.Popen(
        ["dd", f"of={node}", "bs=64k", "oflag=direct", "iflag=fullblock", "status=none"],
        stdin=subprocess.PIPE,
    )
    assert writing.stdin is not None
    writing.stdin.write(data[: 4 * MIB])
    writing.stdin.flush()
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    writing.stdin.write(data[4 * MIB :])
    writing.stdin.close()
    assert writing.wait() == 0
    assert read_direct(node, 0, len(data)) == data
    assert requests_in_flight(node) == 0
