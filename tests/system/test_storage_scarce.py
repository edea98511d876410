"""A storage daemon that has no fds left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.held import nothing_left
from tests.system.scarce import fd_limit
from tests.system.test_storage_sockets import nbd_server, node, served
from vduse.control.refusals import NO_FDS_LEFT


@pytest.mark.parametrize("kind", ["nbd", "vhost-user-blk"])
def test_an_export_that_finds_no_fds_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    """Wherever it runs out of them; and what to do is said."""
    where = {"addr": {"type": "unix", "path": f"{tmp_path}/e.sock"}} if kind != "nbd" else {}
    answers = []
    with served(tmp_path, node(tmp_path), nbd_server(tmp_path)) as client:

        def add() -> str:
            reply = client.execute(
                "block-export-add", type=kind, id="e", node_name="disk0", **where
            )
            if "return" in reply:
                client.call("block-export-del", id="e")
            return reply.get("error", {}).get("desc", "")

        # What is made at the first export and kept is made now.
        assert add() == ""
        with nothing_left():
            for more in range(40):
                with fd_limit(more):
                    answers.append(add())
            assert answers[-1] == add() == ""
        assert sum(NO_FDS_LEFT in answer for answer in answers) > 5, answers
        client.call("blockdev-del", node_name="disk0")
