"""The device half of the native module: pools, backends, data paths, and their errors."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vduse import _native

MIB = 1 << 20


@pytest.fixture
def pool() -> Iterator[_native.Pool]:
    pool = _native.Pool(1)
    yield pool
    pool.close()


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return str(path)


@pytest.fixture
def resolver() -> Iterator[_native.CallSocket]:
    """A call socket whose other end has gone: every IOTLB miss fails."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    calls = _native.CallSocket(ours.detach())
    yield calls
    calls.close()


def data_path(
    pool: _native.Pool, resolver: _native.CallSocket, **limits: int
) -> _native.BlkDataPath:
    given = {"capacity": MIB // 512} | limits
    return _native.BlkDataPath(pool, _native.Backend.null(MIB), resolver, given, b"serial")


@pytest.fixture
def path(pool: _native.Pool, resolver: _native.CallSocket) -> Iterator[_native.BlkDataPath]:
    path = data_path(pool, resolver)
    yield path
    path.close()


def start(path: _native.BlkDataPath, *, size: int = 16, callfd: int = -1, kickfd: int = -1) -> None:
    path.start_queue(
        0,
        size=size,
        features=0,
        areas=(0x1000, 0x2000, 0x3000),
        state=(0,),
        kickfd=kickfd,
        callfd=callfd,
        inflight=None,
    )


class TestPool:
    def test_workers(self) -> None:
        pool = _native.Pool(3)
        assert pool.workers == 3
        pool.close()
        pool.close()

    def test_one_worker_a_cpu_at_most_4(self) -> None:
        assert 1 <= _native.Pool().workers <= 4

    def test_no_workers(self) -> None:
        with pytest.raises(ValueError, match="needs a worker"):
            _native.Pool(0)


class TestBackend:
    @pytest.mark.parametrize("make", [_native.Backend.null, _native.Backend.memory])
    def test_without_a_file(self, make: object) -> None:
        assert callable(make)
        backend = make(MIB)
        assert (backend.size, backend.block_size, backend.engine) == (MIB, 512, "none")
        assert (backend.read_only, backend.can_discard) == (False, True)
        for size in (0, 1, 513):
            with pytest.raises(OSError, match="multiple of 512") as caught:
                make(size)
            assert caught.value.errno == errno.EINVAL

    def test_a_disk_larger_than_the_address_space(self) -> None:
        with pytest.raises(OSError) as caught:
            _native.Backend.memory(1 << 62)
        assert caught.value.errno == errno.ENOMEM

    def test_file(self, image: str) -> None:
        backend = _native.Backend.file(image, engine="threads")
        assert (backend.size, backend.engine, backend.read_only) == (MIB, "threads", False)
        backend.flush()
        os.truncate(image, 2 * MIB)
        assert backend.refresh_size() == backend.size == 2 * MIB
        backend.close()
        backend.close()
        with pytest.raises(ValueError, match="backend is closed"):
            backend.flush()

    def test_what_cannot_be_opened(self, image: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            _native.Backend.file(str(tmp_path / "nowhere"))
        with pytest.raises(OSError, match="neither a regular file nor a block device"):
            _native.Backend.file("/dev/null")
        with pytest.raises(ValueError, match="none of auto, io_uring, threads"):
            _native.Backend.file(image, engine="fast")
        os.truncate(image, 1000)
        with pytest.raises(OSError, match=r"has 1000 bytes.*multiple of 512") as caught:
            _native.Backend.file(image)
        assert caught.value.errno == errno.EINVAL

    def test_a_read_only_file_is_opened_read_only(self, image: str) -> None:
        backend = _native.Backend.file(image, read_only=True)
        assert backend.read_only
        assert not backend.can_discard

    def test_locked_by_another(self, image: str) -> None:
        writer = _native.Backend.file(image)
        with pytest.raises(BlockingIOError, match="in use by another program"):
            _native.Backend.file(image)
        with pytest.raises(BlockingIOError):
            _native.Backend.file(image, read_only=True)
        _native.Backend.file(image, lock=False).close()
        writer.close()
        readers = [_native.Backend.file(image, read_only=True) for _ in range(2)]
        with pytest.raises(BlockingIOError):
            _native.Backend.file(image)
        for reader in readers:
            reader.close()
        _native.Backend.file(image).close()

    @pytest.mark.needs("qemu-img")
    def test_qemu_img_keeps_off(self, image: str) -> None:
        resize = ["qemu-img", "resize", "-f", "raw", image, "2M"]
        backend = _native.Backend.file(image)
        refused = subprocess.run(resize, capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert "lock" in refused.stderr
        backend.close()
        subprocess.run(resize, capture_output=True, check=True)


class TestDataPath:
    def test_limits(self, pool: _native.Pool, resolver: _native.CallSocket) -> None:
        with pytest.raises(ValueError, match="no such limit: capcity"):
            data_path(pool, resolver, capcity=1)
        with pytest.raises(ValueError, match="seg_max is above"):
            data_path(pool, resolver, seg_max=1 << 32)

    def test_a_queue_that_cannot_start(self, path: _native.BlkDataPath) -> None:
        kick = os.eventfd(0)
        with pytest.raises(OSError, match="queue size 3") as caught:
            start(path, size=3, kickfd=kick)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="cannot map IOVA") as caught:
            start(path, kickfd=kick)
        assert caught.value.errno == errno.EFAULT
        os.close(kick)
        with pytest.raises(OSError) as caught:
            start(path, kickfd=kick)
        assert caught.value.errno == errno.EBADF
        assert not path.queue_running(0)

    def test_a_queue_that_does_not_run(self, path: _native.BlkDataPath) -> None:
        with pytest.raises(ValueError, match="queue 5 is not running"):
            path.stop_queue(5, 1.0)
        with pytest.raises(OSError, match="not running"):
            path.set_callfd(5, -1)

    def test_control_of_an_idle_device(self, path: _native.BlkDataPath) -> None:
        assert path.invalidate(0, (1 << 64) - 1, 10.0)
        assert path.reset(float("inf"))
        for timeout in (-1.0, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                path.reset(timeout)
        path.set_capacity(8)
        stats = path.stats()
        assert stats["queues"] == {}
        assert not any(value for value in stats.values() if isinstance(value, int))

    def test_a_closed_one_starts_nothing(self, path: _native.BlkDataPath) -> None:
        path.close()
        path.close()
        kick = os.eventfd(0)
        with pytest.raises(ValueError, match="closed"):
            start(path, kickfd=kick)
        os.close(kick)

    def test_a_resize_is_an_event(
        self, pool: _native.Pool, resolver: _native.CallSocket, image: str
    ) -> None:
        backend = _native.Backend.file(image)
        path = _native.BlkDataPath(pool, backend, resolver, {"capacity": 2048}, b"")
        assert path.events() == []
        assert select.select([path.event_fd], [], [], 0)[0] == []
        os.truncate(image, 2 * MIB)
        backend.refresh_size()
        assert select.select([path.event_fd], [], [], 0)[0] == [path.event_fd]
        assert path.events() == [("resized", 0, str(2 * MIB))]
        assert select.select([path.event_fd], [], [], 0)[0] == []
        path.close()
        backend.close()


def test_a_forked_child_can_use_nothing(pool: _native.Pool, path: _native.BlkDataPath) -> None:
    backend = _native.Backend.memory(MIB)
    uses = [lambda: pool.workers, path.events, lambda: path.reset(1.0), backend.flush, pool.close]
    child = os.fork()
    if child == 0:
        refused = 0
        for use in uses:
            try:
                use()
            except RuntimeError as error:
                refused += "after a fork" in str(error)
        os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == len(uses)
