"""``Backend.connection``: of what is on this host; remote backends' tests have the rest."""

from __future__ import annotations

import time
from pathlib import Path

from tests.unit.test_statistics import mismatches
from vduse import _native
from vduse.control.statistics import ConnectionState


def test_what_is_on_this_host_is_local(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    before = time.time()
    for backend in (
        _native.Backend.null(4096),
        _native.Backend.memory(4096),
        _native.Backend.file(str(image)),
    ):
        found = backend.connection
        assert list(mismatches(ConnectionState, found)) == []
        assert (found["state"], found["why"], found["reconnections"]) == ("local", "", 0)
        assert before - 1 <= found["since"] <= time.time() + 1
        backend.close()
        assert backend.connection == found


def test_a_layer_has_that_of_what_it_lies_on() -> None:
    below = _native.Backend.memory(4096)
    first = below.connection
    layer = _native.layer_read_only(below)
    assert layer.connection == below.connection == first
    layer.close()
