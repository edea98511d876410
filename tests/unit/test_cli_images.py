"""The demo's image: what is said where it may not be written, or its storage fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from vduse.daemon.demo import images, stack
from vduse.daemon.errors import UserError

SIZE = 64 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


def test_blank_image_that_may_not_be_written(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(UserError) as refused:
        images.prepare(image, SIZE)
    assert str(refused.value) == (
        f"{image}: it is empty, the demo would fill it, and it may not be written: "
        "change its mode, or name an image with contents"
    )


@pytest.mark.parametrize(
    ("free", "advice"),
    [
        (0, "no space left there: free some, or use another folder"),
        (1 << 30, "its storage failed a request (input/output error): see the system's log"),
    ],
)
def test_failed_request_is_the_storages_affair(
    image: Path, free: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    with pytest.raises(UserError) as refused, stack.storage_of(image):
        raise OSError(errno.EIO, "randwrite: 3 of 4 requests failed")
    assert str(refused.value) == f"{image}: {advice}"


def test_other_errors_pass(image: Path) -> None:
    with pytest.raises(OSError) as raised, stack.storage_of(image):
        raise OSError(errno.EROFS, "")
    assert raised.value.errno == errno.EROFS
