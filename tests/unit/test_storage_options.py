"""Whatever options are given, there is a daemon or an error that names the option."""

from __future__ import annotations

import errno
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules.tree import ROOT
from vduse.daemon.qmp.arguments import Mistake, Model, read
from vduse.daemon.qmp.table import CommandTable
from vduse.daemon.storage.commands import commands
from vduse.daemon.storage.daemon import Daemon, OptionError
from vduse.daemon.storage.exports.nbd import NbdOptions
from vduse.daemon.storage.exports.nbd_server import NbdServerOptions, NbdServerStart
from vduse.daemon.storage.exports.vduse_blk import VduseBlkOptions
from vduse.daemon.storage.exports.vhost_user_blk import VhostUserBlkOptions
from vduse.daemon.storage.models import ChardevOptions, MonitorOptions
from vduse.daemon.storage.nodes.drivers import DRIVERS
from vduse.daemon.storage.nodes.options import Cache
from vduse.daemon.storage.objects.types import TYPES
from vduse.daemon.storage.store import Store


class NoControl:
    """A control port that refuses all."""

    def __getattr__(self, name: str) -> Any:
        raise OSError(errno.EPERM, f"{name}: not permitted")


_WORDS = """
    driver node-name file filename cache cache.direct cache.no-flush aio size latency-ns read-only
    file.driver file.node-name file.size file.filename offset type id name vduse-id num-queues
    queue-size serial logical-block-size writable chardev mode pretty
"""
_KEYS = st.sampled_from(_WORDS.split())
_GIVEN = """
    null-co raw qcow2 file host_device a b c on off 0 512 4096 -1 0x200 native threads vduse-blk
    control /dev/null /dev/zero/x
"""
_VALUES = st.sampled_from(_GIVEN.split()) | st.text(max_size=4)
_TEXTS = (
    st.dictionaries(_KEYS, _VALUES, max_size=6).map(
        lambda values: ",".join(f"{key}={value}" for key, value in values.items())
    )
    | st.text(max_size=12)
    | st.sampled_from(
        [
            "null-co,node-name=a",
            '{"driver": "raw", "node-name": "b", "file": "a"}',
            '{"driver": "raw", "node-name": 5, "file": null}',
            "vduse-blk,id=e,node-name=a,name=d",
        ]
    )
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["blockdev", "export", "monitor"]), _TEXTS), max_size=5))
def test_a_daemon_or_an_error(options: list[tuple[str, str]]) -> None:
    try:
        Daemon(NoControl(), options).close()
    except OptionError as error:
        assert any(str(error).startswith(f"--{name} {text}: ") for name, text in options)


@pytest.mark.parametrize("port", ["70000", "0", "-1", "010809", " 10809", "10809 ", "nbd", ""])
def test_a_port_is_a_number_from_1_to_65535(port: str) -> None:
    told = f"no port {port}; ports are from 1 to 65535"
    with pytest.raises(OptionError) as refused:
        Daemon(NoControl(), [("nbd-server", f"addr.type=inet,addr.host=h,addr.port={port}")])
    assert str(refused.value).endswith(f": {told}")
    where = {"host": "h", "port": port}
    for addr, path in (
        ({"type": "inet", **where}, "addr.port"),
        ({"type": "inet", "data": where}, "addr.data.port"),
    ):
        model = NbdServerStart if "data" in addr else NbdServerOptions
        _, mistakes = read({"addr": addr}, model)
        assert mistakes == [Mistake(path, f"Parameter 'port': {told}")]


@pytest.mark.parametrize("port", ["1", "10809", "65535"])
def test_ports(port: str) -> None:
    address = {"type": "inet", "host": "h", "port": port}
    assert read({"addr": address}, NbdServerOptions)[1] == []


def test_the_page_has_every_command_as_the_table_has_it() -> None:
    page = (ROOT / "docs/storage-daemon.md").read_text()
    store = Store(NoControl(), lambda event, data: None)
    for row in CommandTable(commands(store, lambda: None)):
        assert f"| `{row.name}` | {row.doc} |\n" in page


@pytest.mark.parametrize(
    "model",
    [
        *DRIVERS,
        *TYPES,
        *(VduseBlkOptions, VhostUserBlkOptions, NbdOptions, NbdServerOptions),
        *(Cache, ChardevOptions, MonitorOptions),
    ],
)
def test_the_page_has_every_key(model: type[Model]) -> None:
    page = (ROOT / "docs/storage-daemon.md").read_text()
    for field in msgspec.structs.fields(model):
        assert re.search(rf"[`.]{field.encode_name}[`=.]", page), field.encode_name
