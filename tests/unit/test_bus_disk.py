"""The disk object and its file views, over a model of the native driver."""

from __future__ import annotations

import errno
import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vduse.bus.disk import Disk, DiskFile

SIZE = 16 * 512


class ModelDriver:
    """A driver that takes whole sectors only, as the native one."""

    def __init__(self, *, read_only: bool = False) -> None:
        self.data = bytearray(range(256)) * (SIZE // 256)
        self.read_only = read_only
        self.flushes = 0

    @property
    def size(self) -> int:
        return len(self.data)

    def _check(self, offset: int, length: int) -> None:
        if offset % 512 or length % 512 or offset + length > len(self.data):
            raise OSError(errno.EINVAL, f"{offset} {length}")

    def preadinto(self, offset: int, buffer: bytearray | memoryview) -> int:
        self._check(offset, len(buffer))
        buffer[:] = self.data[offset : offset + len(buffer)]
        return len(buffer)

    def pwrite(self, offset: int, data: bytes | memoryview) -> int:
        self._check(offset, len(data))
        self.data[offset : offset + len(data)] = data
        return len(data)

    def flush(self) -> None:
        self.flushes += 1

    def discard(self, offset: int, length: int) -> None:
        self._check(offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        self.pwrite(offset, bytes(length))

    def serial(self) -> bytes:
        return b"serial-1".ljust(20, b"\0")


def disk_on(model: ModelDriver) -> Disk:
    return Disk(model, "vd0")  # type: ignore[arg-type]  # as much of a driver as is used here


@pytest.fixture
def model() -> ModelDriver:
    return ModelDriver()


@pytest.fixture
def disk(model: ModelDriver) -> Disk:
    return disk_on(model)


def test_whole_sectors(disk: Disk, model: ModelDriver) -> None:
    assert disk.pwrite(b"x" * 512, 512) == 512
    assert disk.pread(1024, 0) == bytes(model.data[:1024])
    buffer = bytearray(512)
    assert disk.preadinto(buffer, 512) == 512
    assert buffer == b"x" * 512
    disk.write_zeroes(512, 512)
    assert disk.pread(512, 512) == bytes(512)
    disk.discard(0, SIZE)
    disk.flush()
    assert (disk.size, disk.serial(), model.flushes) == (SIZE, "serial-1", 1)
    with pytest.raises(OSError) as caught:
        disk.pwrite(b"x", 0)
    assert caught.value.errno == errno.EINVAL


class TestFile:
    def test_default_is_buffered(self, disk: Disk) -> None:
        assert isinstance(disk.open(), io.BufferedRandom)
        assert isinstance(disk.open("rb"), io.BufferedReader)
        assert isinstance(disk.open("rb", 0), DiskFile)

    def test_modes(self, disk: Disk) -> None:
        with pytest.raises(ValueError, match="'rb' or 'r\\+b'"):
            disk.open("wb")
        with disk.open("rb", 0) as file:
            assert (file.readable(), file.writable(), file.seekable()) == (True, False, True)
            with pytest.raises(io.UnsupportedOperation):
                file.write(b"x")

    def test_a_read_only_disk_opens_as_rb(self) -> None:
        disk = disk_on(ModelDriver(read_only=True))
        with pytest.raises(OSError) as caught:
            disk.open()
        assert caught.value.errno == errno.EROFS
        disk.open("rb").close()

    def test_seek_tell_and_the_end(self, disk: Disk) -> None:
        with disk.open("r+b", 0) as file:
            assert file.seek(-3, io.SEEK_END) == SIZE - 3
            assert file.read(10) == bytes([253, 254, 255])
            assert file.read(1) == b""
            assert file.write(b"") == 0
            with pytest.raises(OSError) as caught:
                file.write(b"x")
            assert caught.value.errno == errno.ENOSPC
            assert file.seek(SIZE - 2) == SIZE - 2
            assert file.write(b"abcd") == 2
            assert file.seek(-2, io.SEEK_CUR) == SIZE - 2
            with pytest.raises(OSError):
                file.seek(-1)
            with pytest.raises(ValueError):
                file.seek(0, 9)

    def test_truncate_is_unsupported(self, disk: Disk) -> None:
        with disk.open() as file, pytest.raises(io.UnsupportedOperation):
            file.truncate(0)

    def test_closing_flushes_what_was_written(self, disk: Disk, model: ModelDriver) -> None:
        with disk.open() as file:
            file.write(b"hello")
        assert model.data[:5] == b"hello"
        assert model.flushes == 1
        disk.open("rb").close()
        assert model.flushes == 1
        with pytest.raises(ValueError):
            file.tell()

    def test_closed_raw_file(self, disk: Disk) -> None:
        file = disk.open("r+b", 0)
        file.close()
        file.close()
        for call in (file.tell, file.read, lambda: file.seek(0), lambda: file.write(b"x")):
            with pytest.raises(ValueError):
                call()

    def test_views_have_positions_of_their_own(self, disk: Disk) -> None:
        first, second = disk.open("r+b", 0), disk.open("rb", 0)
        first.seek(100)
        first.write(b"abc")
        assert second.tell() == 0
        second.seek(100)
        assert second.read(3) == b"abc"

    def test_two_views_write_into_one_sector(self, disk: Disk, model: ModelDriver) -> None:
        def writer(at: int) -> None:
            with disk.open("r+b", 0) as file:
                for _ in range(200):
                    file.seek(at)
                    file.write(b"z")

        threads = [threading.Thread(target=writer, args=(at,)) for at in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert model.data[:9] == b"z" * 8 + b"\x08"


@given(
    st.lists(
        st.tuples(st.integers(0, SIZE + 10), st.binary(max_size=3 * 512), st.integers(0, 3 * 512)),
        max_size=20,
    ),
    st.sampled_from([0, 7, 8192]),
)
def test_behaves_as_a_file_of_fixed_size(
    steps: list[tuple[int, bytes, int]], buffering: int
) -> None:
    driver = ModelDriver()
    expected = bytes(driver.data)
    with disk_on(driver).open("r+b", buffering) as file:
        for offset, data, length in steps:
            file.seek(offset)
            fits = data[: max(0, SIZE - offset)]
            if fits:
                assert file.write(fits) == len(fits)
                expected = expected[:offset] + fits + expected[offset + len(fits) :]
            file.seek(offset)
            assert file.read(length) == expected[offset : offset + length]
    assert bytes(driver.data) == expected
