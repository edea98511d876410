"""docs/storage-daemon-support.md says the truth, and leaves nothing of QEMU's out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rules.tree import ROOT
from tests.unit.test_storage_options import NoControl
from vduse.daemon.qmp.table import CommandTable
from vduse.daemon.storage.commands import commands
from vduse.daemon.storage.store import Store
from vduse.daemon.storage.support import page, rows

#: Names in the introspection of qemu-storage-daemon 10.0.
_QEMU_10 = json.loads((Path(__file__).parent / "qemu_10_names.json").read_text())
#: Of its help.
_OPTIONS = """
    help trace version blockdev chardev daemonize export monitor nbd-server object pidfile
"""


def _table() -> CommandTable:
    return CommandTable(commands(Store(NoControl(), lambda event, data: None), lambda: None))


def _names(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("command", "event", "driver", "export", "object", "chardev"):
        for name in found[kind]:
            yield kind, name
    for name in found["nbd-server"]:
        yield "nbd-server key", name
    for kind, common in (("driver", "blockdev"), ("export", "export")):
        for key in found[f"{kind}-common"]:
            yield f"{kind} key", f"{common}.{key}"
    for kind in ("driver", "export", "object"):
        for name, keys in found[f"{kind}-keys"].items():
            if (kind, name) != ("export", "fuse"):
                for key in keys:
                    yield f"{kind} key", f"{name}.{key}"


def test_the_page_is_the_tables() -> None:
    # After a change: write page(_table()) there.
    assert (ROOT / "docs/storage-daemon-support.md").read_text() == page(_table())


def test_everything_of_qemus_has_one_row() -> None:
    told = [(row.kind, row.name) for row in rows(_table())]
    assert len(set(told)) == len(told)
    qemus = {*_names(_QEMU_10), *(("option", name) for name in _OPTIONS.split())}
    mentioned = set(told) - {("object key", "object.id"), ("object key", "object.qom-type")}
    assert mentioned == qemus


@pytest.mark.needs("qemu-storage-daemon")
def test_the_installed_qemus_options_have_rows() -> None:
    text = subprocess.run(
        ["qemu-storage-daemon", "--help"], capture_output=True, text=True, check=True
    ).stdout
    told = {row.name for row in rows(_table()) if row.kind == "option"}
    given = {word.strip("[](),") for word in text.split() if word.startswith("--")}
    assert {word[2:] for word in given} <= told
