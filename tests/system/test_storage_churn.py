"""Exports that are added and removed at random leave nothing, and disturb nobody's load."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.system.storage_churn import Churn, loads
from tests.system.test_storage_sockets import nbd_server, served
from vduse.testing.leaks import Held

_SEED = 20261123
#: Bytes that the allocator may keep, of what 200 exports took: each had a ring, workers' tasks,
#: and a socket, which are hundreds of KiB.
_KEPT = 32 << 20


def _resident() -> int:
    """Bytes of this process that are its own."""
    fields = Path("/proc/self/status").read_text().split("RssAnon:")
    return int(fields[1].split()[0]) * 1024


@pytest.mark.parametrize("exports", [200])
def test_exports_that_come_and_go_at_random_under_load_on_others(
    tmp_path: Path, exports: int
) -> None:
    with (
        served(tmp_path, "--object=throttle-group,id=g", nbd_server(tmp_path)) as client,
        loads(client, tmp_path, 10) as others,
    ):
        churn = Churn(client, tmp_path, _SEED)
        churn.run(20)  # what is made once is made
        gc.collect()
        before, resident = Held.now(), _resident()
        churn.run(exports)
        assert before.new() == []
        gc.collect()
        assert _resident() - resident < _KEPT
        assert [export["id"][:6] for export in client.call("query-block-exports")] == [
            "steady"
        ] * 10
    assert all(load.rounds for load in others)
