"""In-flight records in a file: which are gone on from, and which are not.

/dev/null and /dev/zero stand in for device nodes: they have directories in sysfs too.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vduse.channel import kernel_records
from vduse.channel.inflight_header import InflightHeader
from vduse.channel.kernel_records import KernelRecords, remove_records, runtime_directory

SIZE = 4096
FEATURES = 1 << 32 | 1 << 33

Open = Callable[..., KernelRecords]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def open_records(run: Path) -> Iterator[Open]:
    """Records of disk0, as each of its programs opens them; as many as the test likes."""
    nodes: list[int] = []
    opened: list[KernelRecords] = []

    def make(node: str = "/dev/null") -> KernelRecords:
        nodes.append(os.open(node, os.O_RDWR))
        opened.append(KernelRecords("disk0", nodes[-1], str(run)))
        return opened[-1]

    yield make
    for records in opened:
        records.close()
    for fd in nodes:
        os.close(fd)


@pytest.fixture
def file(run: Path) -> Path:
    return run / "disk0.inflight"


@pytest.fixture
def left(open_records: Open, file: Path) -> Path:
    """What a program left under a live driver: ``x`` in every record."""
    records = open_records()
    fill(records.begin(SIZE, FEATURES), b"x")
    records.close()
    return file


def fill(fd: int | None, byte: bytes) -> None:
    assert fd is not None
    os.pwrite(fd, byte * SIZE, 0)
    os.close(fd)


def content(fd: int | None) -> bytes:
    """The records; closes the fd."""
    assert fd is not None
    try:
        return os.pread(fd, SIZE, 0)
    finally:
        os.close(fd)


def header_of(file: Path) -> InflightHeader:
    return InflightHeader.unpack(file.read_bytes()[-InflightHeader.SIZE :])


# --- what is kept -----------------------------------------------------------------------------


def test_successor_finds_what_was_left(left: Path, open_records: Open) -> None:
    assert content(open_records().resume(SIZE, FEATURES)) == b"x" * SIZE
    assert content(open_records().resume(SIZE, FEATURES)) == b"x" * SIZE, "found, not taken"


def test_fresh_driver_ok_clears(left: Path, open_records: Open) -> None:
    assert content(open_records().begin(SIZE, FEATURES)) == bytes(SIZE)
    assert content(open_records().resume(SIZE, FEATURES)) == bytes(SIZE)


def test_fresh_driver_may_have_other_virtqueues(left: Path, open_records: Open) -> None:
    fd = open_records().begin(2 * SIZE, 0)
    assert fd is not None
    assert os.fstat(fd).st_size == 2 * SIZE + InflightHeader.SIZE
    os.close(fd)
    assert header_of(left).size == 2 * SIZE


def test_reset_clears(left: Path, open_records: Open) -> None:
    before = header_of(left)
    open_records().clear()
    assert header_of(left) == replace(before, live=False, generation=before.generation + 1)
    with pytest.raises(OSError, match="no driver is live") as failed:
        open_records().resume(SIZE, FEATURES)
    assert failed.value.errno == errno.ENODATA


def test_reset_before_any_driver_is_told_too(open_records: Open) -> None:
    open_records().clear()
    with pytest.raises(OSError) as failed:
        open_records().resume(SIZE, FEATURES)
    assert failed.value.errno == errno.ENODATA


def test_each_reset_counts(open_records: Open, file: Path) -> None:
    records = open_records()
    for generation in range(3):
        os.close(records.begin(SIZE, FEATURES) or -1)
        assert (header_of(file).generation, header_of(file).live) == (generation, True)
        records.clear()
        records.clear()
        assert (header_of(file).generation, header_of(file).live) == (generation + 1, False)


def test_file_and_directory_are_the_owners_alone(left: Path, run: Path) -> None:
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert list(run.iterdir()) == [left]


def test_what_an_unfinished_write_left_is_in_nobodys_way(
    open_records: Open, run: Path, file: Path
) -> None:
    run.mkdir(0o700)
    (run / "disk0.inflight~").write_bytes(b"half")
    os.close(open_records().begin(SIZE, FEATURES) or -1)
    assert list(run.iterdir()) == [file]


def test_destroyed_with_the_device(left: Path, run: Path) -> None:
    remove_records("disk0", str(run))
    assert list(run.iterdir()) == []
    remove_records("disk0", str(run))
    remove_records("disk0", str(run / "missing"))


# --- what is ignored --------------------------------------------------------------------------


def changed(**fields: Any) -> Callable[[Path], None]:
    """Another header, itself in order."""

    def change(file: Path) -> None:
        header = replace(header_of(file), **fields)
        file.write_bytes(b"x" * SIZE + header.pack())

    return change


def damaged_header(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-InflightHeader.SIZE + 20] ^= 1
    file.write_bytes(data)


def of_another_version(file: Path) -> None:
    class Other(InflightHeader):
        VERSION = 2

    header = header_of(file)
    names = ("boot", "device", "features", "size", "generation", "live")
    other = Other(**{name: getattr(header, name) for name in names})
    file.write_bytes(b"x" * SIZE + other.pack())


def behind_a_symlink(file: Path) -> None:
    file.rename(file.parent / "elsewhere")
    file.symlink_to("elsewhere")


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


DOUBTFUL = {
    "old boot": (changed(boot=bytes(16)), "made before the last boot"),
    "foreign device": (changed(device=1), "of another device that had this name"),
    "other features": (changed(features=1), "the driver's features were 0x1, and are 0x300000000"),
    "wrong size": (changed(size=SIZE // 2), "records are 4096 bytes long, not 2048"),
    "other version": (of_another_version, "of version 2, not 1"),
    "damaged header": (damaged_header, "wrong checksum"),
    "truncated": (lambda file: os.truncate(file, SIZE), "no in-flight record, or a truncated one"),
    "almost empty": (lambda file: os.truncate(file, 1), "too short"),
    "empty": (lambda file: os.truncate(file, 0), "too short"),
    "symlink": (behind_a_symlink, "Too many levels of symbolic links"),
    "hard link": (lambda file: os.link(file, file.parent / "too"), "no plain file"),
    "pipe": (a_pipe, "no plain file"),
    "mode": (lambda file: file.chmod(0o620), "others may have written to it"),
    "missing": (Path.unlink, "there is no in-flight record"),
}
PARAMETERS = [pytest.param(*value, id=name) for name, value in DOUBTFUL.items()]


@pytest.mark.parametrize(("spoil", "why"), PARAMETERS)
def test_doubtful_record_is_ignored_with_a_log_line(
    left: Path,
    open_records: Open,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    why: str,
) -> None:
    spoil(left)
    records = open_records()
    assert records.resume(SIZE, FEATURES) is None
    [line] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert line.getMessage().startswith("disk0: ")
    assert why in line.getMessage()
    # What was there is in no fresh driver's way.
    assert content(records.begin(SIZE, FEATURES)) == bytes(SIZE)
    assert content(open_records().resume(SIZE, FEATURES)) == bytes(SIZE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_users_file_is_ignored(
    left: Path, open_records: Open, caplog: pytest.LogCaptureFixture
) -> None:
    os.chown(left, 65534, 65534)
    assert open_records().resume(SIZE, FEATURES) is None
    assert "others may have written to it" in caplog.text


def test_device_that_was_made_again_under_the_name_is_another(
    left: Path, open_records: Open, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_records("/dev/zero").resume(SIZE, FEATURES) is None
    assert "another device that had this name" in caplog.text


def test_live_driver_of_other_virtqueues_keeps_its_records(left: Path, open_records: Open) -> None:
    with pytest.raises(OSError, match="live on 4096 bytes") as failed:
        open_records().resume(2 * SIZE, FEATURES)
    assert failed.value.errno == errno.EBUSY
    assert content(open_records().resume(SIZE, FEATURES)) == b"x" * SIZE


# --- where nothing can be kept ------------------------------------------------------------------


def no_directory(run: Path) -> None:
    run.write_bytes(b"")


def others_directory(run: Path) -> None:
    run.mkdir()
    run.chmod(0o770)


def linked_directory(run: Path) -> None:
    (run.parent / "elsewhere").mkdir(0o700)
    run.symlink_to("elsewhere")


@pytest.mark.parametrize("spoil", [no_directory, others_directory, linked_directory])
def test_without_a_directory_of_its_own_there_is_no_record(
    run: Path,
    open_records: Open,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    spoil(run)
    records = open_records()
    records.clear()
    assert records.begin(SIZE, FEATURES) is None
    assert "no in-flight record can be kept" in caplog.text
    assert "no other can go on under the driver" in caplog.text
    assert records.resume(SIZE, FEATURES) is None


def test_no_room_leaves_no_old_record_behind(
    left: Path, open_records: Open, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    records = open_records()
    records.clear()
    assert not header_of(left).live, "that takes no room"
    assert records.begin(SIZE, FEATURES) is None
    assert list(run.iterdir()) == []
    assert open_records().resume(SIZE, FEATURES) is None


def test_device_that_sysfs_does_not_show_has_no_record(
    open_records: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def hidden(name: str, node: int) -> int:
        raise FileNotFoundError(errno.ENOENT, "no sysfs here")

    monkeypatch.setattr(kernel_records, "_device_number", hidden)
    assert open_records().begin(SIZE, FEATURES) is None
    assert "no sysfs here" in caplog.text


# --- where it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "environment", "directory"),
    [
        (0, {}, "/run/vduse"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/vduse"),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/vduse"),
        (1000, {"RUNTIME_DIRECTORY": "/run/a", "XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/a"),
        (1000, {"RUNTIME_DIRECTORY": "/run/a:/run/b"}, "/run/a"),
    ],
)
def test_runtime_directory(
    monkeypatch: pytest.MonkeyPatch, user: int, environment: dict[str, str], directory: str
) -> None:
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert runtime_directory() == directory


def test_user_without_a_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FileNotFoundError, match="XDG_RUNTIME_DIR"):
        runtime_directory()
