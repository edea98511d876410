"""Layers through a whole stack, from a disk object to the backend."""

from __future__ import annotations

import errno
import time
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.disks import disk_on
from vduse import _native
from vduse.backends import layers
from vduse.backends.layers import Faults, Limits, Throttle
from vduse.backends.memory import open_memory
from vduse.backends.python import PythonBackend
from vduse.bus.disk import Disk

SIZE = 1 << 20
BLOCK = b"x" * 4096


def test_read_only_is_seen_by_the_driver() -> None:
    """virtio 1.3, section 5.2.3: VIRTIO_BLK_F_RO."""
    with disk_on(layers.read_only(open_memory(SIZE))) as disk:
        assert disk.read_only
        with pytest.raises(OSError) as error:
            disk.pwrite(BLOCK, 0)
        assert error.value.errno == errno.EROFS
        assert disk.pread(512, 0) == bytes(512)


@pytest.mark.parametrize(
    ("injected", "seen"),
    [
        (errno.EIO, errno.EIO),
        (errno.ENOSPC, errno.EIO),
        (errno.EOPNOTSUPP, errno.EOPNOTSUPP),
        (errno.ENOSYS, errno.EOPNOTSUPP),
    ],
)
def test_5_2_6_an_error_shows_as_the_status_allows(injected: int, seen: int) -> None:
    faults = Faults()
    with disk_on(layers.error(open_memory(SIZE), faults)) as disk:
        faults.add(injected, ops=["read"])
        with pytest.raises(OSError) as error:
            disk.pread(512, 0)
        assert error.value.errno == seen
        disk.pwrite(BLOCK, 0)
        faults.clear()
        assert disk.pread(4096, 0) == BLOCK


def outcomes(disk: Disk, offsets: list[int]) -> list[bool]:
    """Which writes of a block at ``offsets``, all submitted at once, succeed."""
    tokens = disk.driver.submit([("write", offset, BLOCK) for offset in offsets])
    results = dict(disk.driver.reap(len(offsets)))
    return [results[token] == len(BLOCK) for token in tokens]


def test_errors_are_exact_in_number_and_place() -> None:
    faults = Faults()
    with disk_on(layers.error(open_memory(SIZE), faults)) as disk:
        place = faults.add(offset=6144, length=512, ops=["write", "read"])
        blocks = [n * 4096 for n in range(8)]
        assert outcomes(disk, blocks) == [n != 1 for n in range(8)]
        assert disk.pread(2048, 4096) == bytes(2048)
        faults.clear()
        assert disk.pread(4096, 4096) == bytes(4096)  # nothing of it was written
        number = faults.add(after=3, count=2)
        assert outcomes(disk, blocks) == [True] * 3 + [False] * 2 + [True] * 3
        assert (faults.hits(place), faults.hits(number), faults.hits()) == (1, 2, 3)


def test_a_random_rate_hits_the_same_requests_in_every_run() -> None:
    def run(seed: int) -> list[bool]:
        faults = Faults(seed=seed)
        faults.add(rate=0.3)
        with disk_on(layers.error(open_memory(SIZE), faults)) as disk:
            return [done for _ in range(8) for done in outcomes(disk, [0] * 64)]

    first = run(1)
    assert first == run(1) != run(2)


class RamDisk(PythonBackend):
    """A disk in Python that counts its reads."""

    size = SIZE

    def __init__(self) -> None:
        self.data = bytearray(b"p" * SIZE)
        self.reads = 0
        self.is_closed = False

    def read(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        buffer[:] = self.data[offset : offset + len(buffer)]

    def closed(self) -> None:
        self.is_closed = True


def test_layers_on_a_disk_written_in_python() -> None:
    ram = RamDisk()
    faults = Faults()
    backend = layers.overlay(layers.error(layers.delay(ram, read=0.001), faults))
    assert backend.engine == "python"  # it needs a worker of its own
    with disk_on(backend) as disk:
        disk.pwrite(b"o" * 512, 512)
        assert disk.pread(1536, 0) == b"p" * 512 + b"o" * 512 + b"p" * 512
        faults.add(offset=0, length=512)
        assert disk.pread(512, 512) == b"o" * 512  # the overlay's alone
        with pytest.raises(OSError):
            disk.pread(1024, 0)
    assert (ram.reads, bytes(ram.data), ram.is_closed) == (1, b"p" * SIZE, True)


def test_a_layer_owns_what_lies_beneath() -> None:
    memory = open_memory(SIZE)
    lower = layers.delay(memory)
    upper = layers.read_only(lower)
    for covered in (memory, lower):
        for use in (
            covered.close,
            covered.flush,
            lambda covered=covered: layers.read_only(covered),
        ):
            with pytest.raises(OSError, match="beneath a layer") as error:
                use()
            assert error.value.errno == errno.EBUSY
    upper.close()
    for closed in (memory, lower, upper):
        closed.close()
        with pytest.raises(ValueError, match="closed"):
            closed.flush()


def test_a_backend_is_free_again_once_its_layer_is_gone() -> None:
    memory = open_memory(SIZE)
    layer = layers.read_only(memory)
    del layer
    memory.flush()
    memory.close()


def test_what_lay_beneath_a_released_layer_goes_on() -> None:
    below = open_memory(SIZE)
    layer = layers.read_only(below)
    with pytest.raises(ValueError, match="no layer"):
        open_memory(SIZE).release()
    layer.release()
    with pytest.raises(ValueError, match="closed"):
        layer.flush()
    again = layers.read_only(below)
    # Neither the old layer's close nor its end is anything to what has the backend now.
    layer.close()
    del layer
    with pytest.raises(OSError) as refused:
        below.flush()
    assert refused.value.errno == errno.EBUSY
    again.release()
    below.flush()
    below.close()


def test_a_layer_in_use_is_not_released() -> None:
    layer = layers.read_only(open_memory(SIZE))
    with disk_on(layer), pytest.raises(OSError) as refused:
        layer.release()
    assert refused.value.errno == errno.EBUSY


def test_a_backend_in_use_takes_no_layer() -> None:
    memory = open_memory(SIZE)
    with disk_on(memory), pytest.raises(OSError, match="in use") as error:
        layers.read_only(memory)
    assert error.value.errno == errno.EBUSY


def test_an_operation_does_not_end_before_its_delay() -> None:
    backend = layers.delay(open_memory(SIZE), read=0.05, flush=(0.05, 0.06), seed=1)
    with disk_on(backend) as disk:
        for operation in (partial(disk.pread, 512, 0), disk.flush):
            start = time.monotonic()
            operation()
            assert time.monotonic() - start >= 0.05


def test_delayed_operations_end_in_the_order_they_came() -> None:
    with disk_on(layers.delay(open_memory(SIZE), write=0.01)) as disk:
        tokens = disk.driver.submit([("write", n * 4096, BLOCK) for n in range(32)])
        assert [token for token, _ in disk.driver.reap(32)] == tokens
        assert disk.pread(32 * 4096, 0) == BLOCK * 32


@pytest.mark.parametrize("detain", [{"read": 3600.0}, None], ids=["delay", "throttle"])
def test_a_reset_cancels_what_waits(detain: dict[str, float] | None) -> None:
    """An hour's wait: the test ends sooner."""
    if detain is not None:
        backend = layers.delay(open_memory(SIZE), read=3600)
    else:
        backend = layers.throttle(open_memory(SIZE), Throttle(Limits(iops_total=0.001)))
    with disk_on(backend) as disk:
        disk.driver.submit([("read", 0, bytearray(512)) for _ in range(16)])


def test_iops_size_is_at_least_a_byte() -> None:
    with pytest.raises(ValueError, match="is less than a byte"):
        _native.Throttle({"iops_total": 1.0, "iops_size": 0.5})


def test_a_stop_waits_for_what_a_throttle_holds() -> None:
    limiter = Throttle(Limits(iops_total=100, iops_total_max=100))
    backend = layers.throttle(open_memory(SIZE), limiter)
    with disk_on(backend) as disk:
        disk.driver.submit([("write", n * 4096, BLOCK) for n in range(110)])
        assert all(result == len(BLOCK) for _, result in disk.driver.reap(110))
        limiter.limits = Limits(iops_total=0.001)
        tokens = disk.driver.submit([("write", 0, BLOCK)] * 4)
        assert disk.driver.reap(1, 0) == []
        disk.flush()  # does not wait
        limiter.limits = Limits(bps_total=100e6)
        assert [token for token, _ in disk.driver.reap(4)] == tokens


def test_one_throttle_for_two_disks() -> None:
    limiter = Throttle(Limits(iops_total=0.001))
    below = [layers.throttle(open_memory(SIZE), limiter) for _ in range(2)]
    with disk_on(below[0], "disk0") as one, disk_on(below[1], "disk1") as two:
        for disk in (one, two):
            disk.driver.submit([("write", 0, BLOCK)])
            assert disk.driver.reap(1, 0) == []
        limiter.limits = Limits()
        for disk in (one, two):
            assert [result for _, result in disk.driver.reap(1)] == [len(BLOCK)]


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_an_overlay_never_writes_its_base(engine: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(range(256)) * 4096)
    image.chmod(0o444)
    base = _native.Backend.file(str(image), read_only=True, engine=engine)
    backend = layers.overlay(base)
    assert not backend.read_only
    before = image.read_bytes()
    with disk_on(backend) as disk:
        disk.pwrite(BLOCK, 512)
        disk.discard(8192, 512)
        disk.flush()
        expected = bytearray(before[:16384])
        expected[512 : 512 + len(BLOCK)] = BLOCK
        expected[8192:8704] = bytes(512)
        assert disk.pread(16384, 0) == expected
        assert backend.overlay_allocated == 2 * 4096
        disk.discard(0, SIZE)
        assert disk.pread(SIZE, 0) == bytes(SIZE)
        assert backend.overlay_allocated == 0
    assert image.read_bytes() == before


_SECTORS = 64
_PLACES = st.tuples(st.integers(0, _SECTORS - 1), st.integers(1, _SECTORS)).map(
    lambda place: (place[0] * 512, min(place[1], _SECTORS - place[0]) * 512)
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["write", "discard", "write_zeroes", "read"]), _PLACES)),
    st.booleans(),
)
def test_an_overlay_is_as_a_bytearray(
    operations: list[tuple[str, tuple[int, int]]], is_delayed: bool
) -> None:
    """The base is of a pattern, and unchanged afterwards."""
    size = _SECTORS * 512
    pattern = bytes(n % 251 for n in range(size))
    with NamedTemporaryFile() as image:
        image.write(pattern)
        image.flush()
        base = _native.Backend.file(image.name, read_only=True)
        # Reads that are under way beneath when the overlay changes.
        backend = layers.overlay(layers.delay(base, read=0.0001) if is_delayed else base)
        model = bytearray(pattern)
        with disk_on(backend) as disk:
            for number, (operation, (offset, length)) in enumerate(operations):
                span = slice(offset, offset + length)
                match operation:
                    case "write":
                        model[span] = bytes([number % 256]) * length
                        disk.pwrite(bytes(model[span]), offset)
                    case "read":
                        assert disk.pread(length, offset) == model[span]
                    case _:
                        model[span] = bytes(length)
                        getattr(disk, operation)(offset, length)
            assert disk.pread(size, 0) == model
        assert Path(image.name).read_bytes() == pattern


def test_racing_reads_see_old_or_new_sectors() -> None:
    """A read that mixes base and overlay, with writes in flight over the same sectors."""
    with NamedTemporaryFile() as image:
        image.write(b"\xff" * SIZE)
        image.flush()
        backend = layers.overlay(_native.Backend.file(image.name, read_only=True))
        with disk_on(backend) as disk:
            for version in range(32):
                buffers = [bytearray(65536) for _ in range(8)]
                batch: list[tuple[str, int, Any]] = []
                for number, buffer in enumerate(buffers):
                    batch.append(("write", 512 * (number % 4) * 2, bytes([version]) * 4096))
                    batch.append(("read", 0, buffer))
                disk.driver.submit(batch)
                assert all(result > 0 for _, result in disk.driver.reap(len(batch)))
                for buffer in buffers:
                    for at in range(0, len(buffer), 512):
                        sector = bytes(buffer[at : at + 512])
                        allowed = {b"\xff" * 512, bytes([version]) * 512}
                        allowed.add(bytes([max(0, version - 1)]) * 512)
                        assert sector in allowed
