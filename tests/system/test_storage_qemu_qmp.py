"""The storage daemon and Python's qemu.qmp, which others wrote: its client and its shell."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.unit.test_storage_options import NoControl
from vduse.daemon.storage.daemon import Daemon

#: Seconds; a watchdog.
_TIMEOUT = 60.0


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[str]:
    """A daemon's."""
    path = f"{tmp_path}/qmp.sock"
    options = [
        ("chardev", f"socket,id=mon,path={path},server=on,wait=off"),
        ("monitor", "mon"),
        ("nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd.sock"),
    ]
    daemon = Daemon(NoControl(), options)
    yield path
    daemon.close()


def test_a_life_of_a_node_and_an_export_by_the_client(monitor: str) -> None:
    async def talk() -> None:
        client = QMPClient("test")
        await client.connect(monitor)
        node = {"driver": "null-co", "node-name": "n", "size": 1 << 20}
        await client.execute("blockdev-add", node)
        export = {"type": "nbd", "id": "e", "node-name": "n"}
        await client.execute("block-export-add", export)
        with pytest.raises(ExecuteError) as refused:
            await client.execute("block-export-add", export)
        assert refused.value.error_class == "GenericError"
        assert str(refused.value) == "Block export id 'e' is already in use"
        with pytest.raises(ExecuteError) as unknown:
            await client.execute("query-block")
        assert unknown.value.error_class == "CommandNotFound"
        [shown] = await client.execute("query-block-exports")
        assert shown["id"] == "e"
        with client.listener("BLOCK_EXPORT_DELETED") as listener:
            await client.execute("block-export-del", {"id": "e"})
            event = await listener.get()
        assert event["data"] == {"id": "e"}
        await client.execute("quit")
        await client.disconnect()

    asyncio.run(asyncio.wait_for(talk(), _TIMEOUT))


def test_the_shell(monitor: str) -> None:
    lines = [
        "query-version",
        "blockdev-add driver=null-co node-name=n size=1048576",
        "block-export-add type=nbd id=e node-name=n",
        "query-block-exports",
        "blockdev-del node-name=n",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "qemu.qmp.qmp_shell", monitor],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
    )
    assert ran.returncode == 0, ran.stderr
    assert '"package": "vduse ' in ran.stdout
    assert '"id": "e"' in ran.stdout
    assert "Node n is in use: by export 'e'" in ran.stdout
