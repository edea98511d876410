"""The backend ``nbd`` on other projects' servers: what is stored, and what survives when they are
killed, stall or fail."""

from __future__ import annotations

import errno
import random
import socket
import threading
from pathlib import Path

import pytest

from tests.disks import disk_on, zeroes
from tests.system.nbd_servers import NbdServer, nbdkit, qemu_nbd
from tests.verified import Verified
from vduse.backends.errors import BackendError
from vduse.backends.memory import open_memory
from vduse.backends.spec import open_backend

pytestmark = [pytest.mark.needs("nbdkit"), pytest.mark.needs("qemu-nbd")]

MIB = 1 << 20
SIZE = 64 * MIB
BLOCK = 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return zeroes(tmp_path / "disk.img", SIZE)


@pytest.fixture(params=["nbdkit", "qemu-nbd", "qemu-nbd, many connections"])
def server(request: pytest.FixtureRequest, tmp_path: Path, image: Path) -> NbdServer:
    """On ``image``; to be started."""
    match request.param:
        case "nbdkit":
            return nbdkit(tmp_path, "file", str(image))
        case "qemu-nbd":
            return qemu_nbd(tmp_path, image)
        case _:
            return qemu_nbd(tmp_path, image, "--shared=16")


def test_what_is_written_is_in_the_servers_image(server: NbdServer, image: Path) -> None:
    with server, disk_on(open_backend(server.spec)) as disk:
        assert disk.size == SIZE
        data = random.Random(1).randbytes(3 * MIB)
        disk.pwrite(data, 5 * MIB)
        disk.pwrite(b"\1" * BLOCK, SIZE - BLOCK)
        disk.flush()
        assert disk.pread(len(data), 5 * MIB) == data
        stored = image.read_bytes()
        assert stored[5 * MIB : 8 * MIB] == data
        assert stored[-BLOCK:] == b"\1" * BLOCK
        disk.write_zeroes(5 * MIB, MIB)
        disk.discard(6 * MIB, MIB)
        assert disk.pread(MIB, 5 * MIB) == bytes(MIB)
        assert disk.pread(MIB, 7 * MIB) == data[2 * MIB :]


@pytest.mark.parametrize("queues", [1, 2])
def test_a_server_killed_under_load_loses_nothing(
    server: NbdServer, image: Path, queues: int
) -> None:
    with server, disk_on(open_backend(server.spec), queues=queues) as disk:
        with Verified(disk, threads=4) as load:
            for _ in range(5):
                load.go_on()
                server.kill()
                server.start()
            load.go_on()
        disk.flush()
        load.check_file(image)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_server_that_takes_few_connections_serves_all_queues(tmp_path: Path, most: int) -> None:
    """Each of two workers would have four."""
    filters = ["--filter=limit", "memory", str(SIZE), f"limit={most}"]
    with (
        nbdkit(tmp_path, *filters) as server,
        disk_on(open_backend(server.spec), queues=2) as disk,
        Verified(disk, threads=8, blocks=64) as load,
    ):
        load.go_on()


def test_a_stalled_server_holds_up_its_own_disk_alone(tmp_path: Path, image: Path) -> None:
    with (
        qemu_nbd(tmp_path, image) as server,
        disk_on(open_memory(SIZE), "other") as other,
        disk_on(open_backend(server.spec)) as disk,
    ):
        disk.pwrite(b"a" * BLOCK, 0)
        server.stall()
        read: list[bytes] = []
        waiting = threading.Thread(target=lambda: read.append(disk.pread(BLOCK, 0)))
        waiting.start()
        with Verified(other) as load:
            load.go_on()
        assert (waiting.is_alive(), read) == (True, [])
        server.go_on()
        waiting.join()
        assert read == [b"a" * BLOCK]


@pytest.mark.parametrize("delay", ["0s", "0.2s"])
def test_requests_fail_once_the_reconnect_delay_is_over_and_work_again_with_the_server(
    tmp_path: Path, image: Path, delay: str
) -> None:
    with qemu_nbd(tmp_path, image) as server:
        backend = open_backend(f"{server.spec},reconnect-delay={delay}")
        with disk_on(backend) as disk:
            disk.pwrite(b"a" * BLOCK, 0)
            server.kill()
            for _ in range(2):
                with pytest.raises(OSError) as error:
                    disk.pread(BLOCK, 0)
                assert error.value.errno == errno.EIO
            server.start()
            while True:
                try:
                    assert disk.pread(BLOCK, 0) == b"a" * BLOCK
                    break
                except OSError as failed:
                    assert failed.errno == errno.EIO


def test_on_error_wait_never_fails_a_request(tmp_path: Path, image: Path) -> None:
    with qemu_nbd(tmp_path, image) as server:
        backend = open_backend(f"{server.spec},reconnect-delay=0s,on-error=wait")
        with disk_on(backend) as disk, Verified(disk) as load:
            load.go_on()
            server.kill()
            server.start()
            load.go_on()


def test_a_servers_error_reaches_the_driver_and_the_next_request_works(tmp_path: Path) -> None:
    fails = tmp_path / "fails"
    filters = ["--filter=error", "memory", str(SIZE), "error-pread=ENOSPC", "error-pread-rate=100%"]
    with (
        nbdkit(tmp_path, *filters, f"error-pread-file={fails}") as server,
        disk_on(open_backend(server.spec)) as disk,
    ):
        disk.pwrite(b"a" * BLOCK, 0)
        fails.touch()
        with pytest.raises(OSError) as error:
            disk.pread(BLOCK, 0)
        assert error.value.errno == errno.EIO  # all that virtio-blk can say
        fails.unlink()
        assert disk.pread(BLOCK, 0) == b"a" * BLOCK


def test_slow_replies_come_in_any_order(tmp_path: Path) -> None:
    filters = ["--filter=delay", "memory", str(SIZE), "delay-read=20ms"]
    with (
        nbdkit(tmp_path, *filters) as server,
        disk_on(open_backend(server.spec)) as disk,
        Verified(disk, threads=8, blocks=4) as load,
    ):
        load.go_on()


def test_reads_are_put_together_of_holes_and_data(tmp_path: Path, image: Path) -> None:
    """qemu-nbd answers a sparse image in chunks (NBD_REPLY_TYPE_OFFSET_HOLE)."""
    with image.open("r+b") as file:
        for at in range(0, 8 * MIB, 128 << 10):
            file.seek(at)
            file.write(b"x" * BLOCK)
    with (
        qemu_nbd(tmp_path, image) as server,
        disk_on(open_backend(server.spec)) as disk,
        image.open("rb") as file,
    ):
        assert disk.pread(8 * MIB, 0) == file.read(8 * MIB)


def test_a_size_that_changed_is_seen_when_the_connection_is_made_again(
    tmp_path: Path, image: Path
) -> None:
    with qemu_nbd(tmp_path, image) as server, disk_on(open_backend(server.spec)) as disk:
        server.kill()
        with image.open("r+b") as file:
            file.truncate(2 * SIZE)
        server.start()
        disk.pread(BLOCK, 0)  # waits for the connection
        while disk.size != 2 * SIZE:
            disk.pread(BLOCK, 0)
        disk.pwrite(b"z" * BLOCK, 2 * SIZE - BLOCK)


def test_a_read_only_export_is_a_read_only_disk(tmp_path: Path, image: Path) -> None:
    with (
        qemu_nbd(tmp_path, image, "--read-only") as server,
        disk_on(open_backend(server.spec)) as disk,
    ):
        assert disk.read_only
        with pytest.raises(OSError) as error:
            disk.pwrite(BLOCK * b"x", 0)
        assert error.value.errno == errno.EROFS


def test_an_export_is_asked_for_by_its_name(tmp_path: Path, image: Path) -> None:
    with qemu_nbd(tmp_path, image, "--export-name=disk") as server:
        with disk_on(open_backend(f"{server.spec},export=disk")) as disk:
            assert disk.size == SIZE
        once = server.spec.replace("60s", "0s")
        with pytest.raises(BackendError, match="the server has no such export"):
            open_backend(f"{once},export=other")


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="No such file or directory"):
        open_backend(f"nbd:unix:{tmp_path}/none.sock")
    with socket.socket() as unheard:  # nobody else gets the port, and it does not listen
        unheard.bind(("127.0.0.1", 0))
        address = f"nbd:127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(BackendError, match=f"^{address}: Connection refused$"):
            open_backend(address)
