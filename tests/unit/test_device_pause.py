"""A device that is paused: its backend may be closed, and another one goes on."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from vduse import _native
from vduse.backends.python import PythonBackend
from vduse.bus import virtio_blk
from vduse.device.device import DeviceError
from vduse.testing.harness import blk_stack

MIB = 1 << 20


def image(folder: Path, name: str, byte: int, size: int = MIB) -> _native.Backend:
    path = folder / name
    path.write_bytes(bytes([byte]) * size)
    return _native.Backend.file(str(path))


def test_a_backend_is_closed_in_the_pause_and_another_of_another_size_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resized = threading.Event()
    monkeypatch.setattr(virtio_blk.log, "info", lambda *_: resized.set())
    first = image(tmp_path, "first", 1)
    with blk_stack(backend=first) as stack:
        with pytest.raises(OSError, match="in use"):
            first.close()
        stack.disk.pwrite(b"\3" * 512, 0)
        stack.blk.pause()
        assert stack.blk.paused
        first.close()
        assert stack.blk.resize() == MIB  # as it was
        second = image(tmp_path, "second", 2, 2 * MIB)
        stack.blk.resume(second)
        assert resized.wait(60)
        assert (stack.blk.size, stack.blk.backend, stack.disk.size) == (2 * MIB, second, 2 * MIB)
        assert stack.disk.pread(512, 2 * MIB - 512) == b"\2" * 512
    second.close()
    assert (tmp_path / "first").read_bytes()[:1024] == b"\3" * 512 + b"\1" * 512


def test_requests_of_a_pause_are_served_after_it(tmp_path: Path) -> None:
    backend = image(tmp_path, "disk", 1)
    with blk_stack(backend=backend) as stack:
        stack.blk.pause()
        found: list[bytes] = []
        reading = threading.Thread(target=lambda: found.append(stack.disk.pread(512, 0)))
        reading.start()
        stack.blk.resume(backend)
        reading.join()
        assert found == [b"\1" * 512]
        with pytest.raises(ValueError, match="not paused"):
            stack.blk.resume(backend)


class Full(PythonBackend):
    """Whose flush fails while it is full."""

    size = MIB
    is_full = True

    def read(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes([7]) * len(buffer)

    def write(self, offset: int, buffer: memoryview) -> None:
        pass

    def flush(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_flush_that_fails_ends_the_pause() -> None:
    full = Full()
    with blk_stack(backend=full) as stack:
        with pytest.raises(OSError, match="No space"):
            stack.blk.pause()
        assert not stack.blk.paused
        assert stack.disk.pread(512, 0) == b"\7" * 512
        full.is_full = False
        stack.blk.pause()


def test_a_device_that_has_ended_is_neither_paused_nor_resumed(tmp_path: Path) -> None:
    backend = image(tmp_path, "disk", 1)
    with blk_stack(backend=backend) as stack:
        blk = stack.blk
        blk.pause()
    for call in (blk.pause, lambda: blk.resume(backend)):
        with pytest.raises(DeviceError, match="not started"):
            call()
    backend.close()
