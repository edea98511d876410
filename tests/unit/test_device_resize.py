"""Resize: a config interrupt tells the driver (virtio 1.3, section 5.2.4)."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vduse.bus import virtio_blk
from vduse.testing.harness import blk_stack


def test_a_live_driver_sees_the_new_capacity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resized = threading.Event()
    monkeypatch.setattr(virtio_blk.log, "info", lambda *_: resized.set())
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with blk_stack(backend=str(image), size=None) as stack:
        assert stack.disk.size == 1 << 20
        os.truncate(image, (2 << 20) + 512)
        assert stack.blk.resize() == (2 << 20) + 512
        assert resized.wait(60)
        assert stack.disk.size == (2 << 20) + 512
