"""What of QEMU 10's storage daemon is here: docs/storage-daemon-support.md is made of it.

What is supported is seen from the commands and models; what differs and what is absent is said in
differences.py, and neither can be said of what is not so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec.structs

from vduse.daemon.commands import StorageDaemonOptions
from vduse.daemon.qmp.arguments import variants
from vduse.daemon.qmp.table import CAPABILITIES, CommandTable
from vduse.daemon.storage.commands import EVENTS
from vduse.daemon.storage.differences import ABSENT, DIFFERENT
from vduse.daemon.storage.exports.export import ExportOptions
from vduse.daemon.storage.exports.nbd_server import NbdServerOptions
from vduse.daemon.storage.models import ChardevOptions
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.objects.options import ObjectOptions
from vduse.daemon.table import Param


@dataclasses.dataclass(frozen=True)
class Row:
    """One thing of QEMU's."""

    kind: str
    name: str
    #: supported, different or absent.
    status: str
    #: How it differs, or why it is absent.
    note: str = ""


def rows(table: CommandTable) -> list[Row]:
    """All, by kind; those that are here first. ValueError: what is said is not so."""
    here = dict.fromkeys(_here(table))
    absent = {(kind, name): why for kind, why, names in ABSENT for name in names.split()}
    if wrong := [each for each in absent if each in here]:
        raise ValueError(f"said to be absent and here: {wrong}")
    if wrong := [each for each in DIFFERENT if each not in here]:
        raise ValueError(f"said to differ and not here: {wrong}")
    found = [
        Row(*each, "different", DIFFERENT[each]) if each in DIFFERENT else Row(*each, "supported")
        for each in here
    ]
    found += [Row(*each, "absent", why) for each, why in absent.items()]
    kinds = list(dict.fromkeys(row.kind for row in found))
    return sorted(found, key=lambda row: kinds.index(row.kind))


def page(table: CommandTable) -> str:
    """As Markdown."""
    lines = [
        "# What of QEMU's storage daemon is supported",
        "",
        "Every option, command, event, driver and key of qemu-storage-daemon 10, and what",
        "[ours](storage-daemon.md) makes of it. This page is made from the daemon's own table",
        "(daemon/storage/support.py); a test compares it. What is absent is refused by its name.",
    ]
    kind = ""
    for row in rows(table):
        if row.kind != kind:
            kind = row.kind
            lines += [
                "",
                f"## {_TITLES[kind]}",
                "",
                "| name | | how, or why not |",
                "|---|---|---|",
            ]
        lines.append(f"| `{row.name}` | {row.status} | {row.note} |")
    return "\n".join(lines) + "\n"


_TITLES = {
    "option": "Options",
    "command": "QMP commands",
    "event": "QMP events",
    "driver": "Block drivers",
    "driver key": "Keys of block drivers",
    "export": "Export types",
    "export key": "Keys of exports",
    "object": "Objects",
    "object key": "Keys of objects",
    "nbd-server key": "Keys of the NBD server",
    "chardev": "Chardevs",
}

#: Keys that QEMU's daemon does not have.
OURS = {
    ("option", "trace-json"),
    ("option", "config"),
    ("option", "check"),
    ("option", "metrics"),
    ("option", "log-format"),
    ("option", "log-level"),
    ("command", "x-query-state"),
    ("driver key", "file.force-share"),
    ("driver key", "host_device.force-share"),
    ("driver key", "rbd.keyring"),
    ("driver key", "rbd.lock"),
    ("driver key", "rbd.on-error"),
    ("driver key", "rbd.open-timeout"),
    ("driver key", "rbd.reconnect-delay"),
    ("driver key", "nbd.on-error"),
    ("export key", "vduse-blk.vduse-id"),
}


def _here(table: CommandTable) -> Iterator[tuple[str, str]]:
    for each in _here_and_ours(table):
        if each not in OURS:
            yield each


def _here_and_ours(table: CommandTable) -> Iterator[tuple[str, str]]:
    for name in ("help", "version", *_options()):
        yield "option", name
    for name in (CAPABILITIES, *(row.name for row in table)):
        yield "command", name
    for name in EVENTS:
        yield "event", name
    yield from _models("driver", Blockdev, "blockdev")
    yield from _models("export", ExportOptions, "export")
    yield from _models("object", ObjectOptions, "object")
    for name in _keys(NbdServerOptions):
        yield "nbd-server key", name
    yield "chardev", str(ChardevOptions.__struct_config__.tag)


def _options() -> Iterator[str]:
    for field in dataclasses.fields(StorageDaemonOptions):
        param: Param = field.metadata["param"]
        if param.kind == "ordered":
            yield from (name for name, _ in param.options)
        else:
            yield field.name.replace("_", "-")


def _models(kind: str, base: Any, common: str) -> Iterator[tuple[str, str]]:
    structs = variants(base)
    for struct in structs:
        yield kind, str(struct.__struct_config__.tag)
    shared = list(_keys(base))
    for key in (str(base.__struct_config__.tag_field), *shared):
        yield f"{kind} key", f"{common}.{key}"
    for struct in structs:
        for key in _keys(struct, shared):
            yield f"{kind} key", f"{struct.__struct_config__.tag}.{key}"


def _keys(struct: Any, without: Iterable[str] = ()) -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        if field.encode_name not in without:
            yield field.encode_name
