"""`vduse storage-daemon` on the kernel: QEMU's command lines, `vdpa dev add`, QMP, ends."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.guest.bed import MIB, node_of, read_direct, run, write_direct
from tests.unit.qmp_client import QmpClient
from tests.waiting import eventually
from vduse.vdpa.drivers import VdpaBus
from vduse.vdpa.netlink import VdpaManagement

_RFC = (
    "--chardev socket,id=charmonitor,path={socket},server,nowait "
    "--monitor chardev=charmonitor "
    "--blockdev driver=host_device,cache.direct=on,aio=native,filename=/dev/nullb0,"
    "node-name=disk0 "
    "--export vduse-blk,id=test,node-name=disk0,writable=on,vduse-id=1,num-queues=16,"
    "queue-size=128"
)
_TODAY = (
    "--chardev socket,id=qmp,path={socket},server=on,wait=off --monitor chardev=qmp "
    "--blockdev driver=file,filename={image},node-name=disk0 "
    "--export type=vduse-blk,id=test,node-name=disk0,name=vduse1,writable=on"
)
_NODE = Path("/dev/vduse/vduse1")


@pytest.fixture(scope="module", autouse=True)
def null_blk(modules: None) -> None:
    run("modprobe", "null_blk", "gb=1", "memory_backed=1")


class _Daemon:
    def __init__(self, folder: Path, line: str) -> None:
        self.folder = folder
        self.socket = str(folder / "qmp.sock")
        self.image = folder / "image"
        self._line = line

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """The command, once it serves."""
        argv = shlex.split(self._line.format(socket=self.socket, image=self.image))
        with subprocess.Popen(
            [sys.executable, "-m", "vduse.daemon", "storage-daemon", *argv],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("vduse1: ")
                yield process
            finally:
                process.kill()


@contextmanager
def _added() -> Iterator[str]:
    """vduse1 on the bus; /dev/vdX."""
    with VdpaManagement() as vdpa:
        vdpa.add("vduse1")
        yield node_of("vduse1")
        vdpa.delete("vduse1")


def test_the_rfcs_command_word_for_word(tmp_path: Path) -> None:
    daemon = _Daemon(tmp_path, _RFC)
    data = os.urandom(MIB)
    with daemon.running() as process, QmpClient(daemon.socket) as qmp:
        with _added() as disk:
            assert VdpaBus().names() == ["vduse1"]
            write_direct(disk, MIB, data)
            assert read_direct(disk, MIB, MIB) == data
        assert read_direct("/dev/nullb0", MIB, MIB) == data
        [export] = qmp.call("query-block-exports")
        assert (export["id"], export["node-name"]) == ("test", "disk0")
        assert qmp.refusal("block_resize", node_name="disk0", size=2 << 30) == (
            "Cannot grow device files"
        )
        assert qmp.call("quit") == {}
        assert process.wait() == 0
    assert not _NODE.exists()
    assert list(tmp_path.iterdir()) == []


def test_block_resize_is_seen_in_sysfs(tmp_path: Path) -> None:
    daemon = _Daemon(tmp_path, _TODAY)
    daemon.image.write_bytes(bytes(MIB))
    with daemon.running() as process, QmpClient(daemon.socket) as qmp:
        with _added() as disk:
            size = Path(f"/sys/block/{Path(disk).name}/size")
            assert size.read_text() == f"{MIB // 512}\n"
            qmp.call("block_resize", node_name="disk0", size=4 * MIB)
            eventually(lambda: size.read_text() == f"{4 * MIB // 512}\n", "the new size")
            write_direct(disk, 3 * MIB, b"z" * 4096)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not _NODE.exists()
    assert list(tmp_path.iterdir()) == [daemon.image]
    assert daemon.image.read_bytes()[3 * MIB :][:4096] == b"z" * 4096


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_device_on_the_bus_is_taken_over(tmp_path: Path, end: signal.Signals) -> None:
    daemon = _Daemon(tmp_path, _TODAY)
    daemon.image.write_bytes(bytes(MIB))
    with VdpaManagement() as vdpa:
        with daemon.running() as process:
            vdpa.add("vduse1")
            disk = node_of("vduse1")
            write_direct(disk, 0, b"1" * 4096)
            process.send_signal(end)
            process.wait()
        assert _NODE.exists()
        with daemon.running() as process:
            assert read_direct(disk, 0, 4096) == b"1" * 4096
            vdpa.delete("vduse1")
            process.send_signal(signal.SIGHUP)
            assert process.wait() == 0
    assert not _NODE.exists()
