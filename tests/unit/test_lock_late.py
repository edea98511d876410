"""An image that is locked while a driver is live (docs/backends/file.md, "Locks")."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend
from vduse.testing.harness import BlkStack, blk_stack
from vduse.testing.rawdriver import S_OK, T_IN, T_OUT, RawDriver


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, 1 << 20)
    return str(path)


@contextmanager
def shared(image: str) -> Iterator[BlkStack]:
    backend = open_backend(image, lock_late=True, layers=("delay,read=1ms",))
    with blk_stack(backend=backend, driver="vhost_vdpa") as stack:
        yield stack
    backend.close()


def test_the_image_goes_from_one_to_the_other(image: str, caplog: pytest.LogCaptureFixture) -> None:
    with shared(image) as source, shared(image) as target:
        with RawDriver(source.driver) as first, RawDriver(target.driver) as second:
            assert first.start()
            assert first.request(T_OUT, 0, b"\x42" * 512)[0] == S_OK
            with caplog.at_level(logging.WARNING):
                assert not second.start()
            assert 'in use by another program, which holds its "' in caplog.text
            with pytest.raises(BackendError, match="in use by another program"):
                open_backend(image)
            first.driver.get_vring_base(0)
        with RawDriver(target.driver) as second:
            assert second.start()
            assert second.request(T_IN, 0, room=512)[:2] == (S_OK, b"\x42" * 512)
        open_backend(image).close()


def test_a_holder_that_goes_within_a_second_is_waited_for(image: str) -> None:
    holder = open_backend(image)
    with shared(image) as stack, RawDriver(stack.driver) as driver:
        tries = threading.Timer(0.1, holder.close)
        tries.start()
        assert driver.start()
        tries.join()
