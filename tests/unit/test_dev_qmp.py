"""`vduse dev --qmp`: the bus of another `vduse blk`, by QMP."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.qmp_client import QmpClient
from vduse.daemon.blk.embedded import EmbeddedAttachment
from vduse.daemon.doors.nbd import NbdDoor
from vduse.daemon.errors import UserError
from vduse.daemon.main import main
from vduse.devices.local import local_blk
from vduse.exports.nbd import NbdServer
from vduse.framework import Framework

SIZE = 1 << 20
NBD = NbdDoor("disk.sock", mode=0o600, description="")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bus(folder: Path) -> Iterator[EmbeddedAttachment]:
    """What `vduse blk memory --nbd disk.sock --qmp bus.qmp` serves."""
    attachment = EmbeddedAttachment(NBD, Framework(), qmp="bus.qmp")
    with local_blk(attachment.control, "disk0", "memory", size=SIZE) as device:
        attachment.attach(device)
        yield attachment
        assert attachment.detach(answering=True) is None
    attachment.close()


@pytest.fixture
def dev(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*argv: str) -> Any:
        code = main(["dev", *argv, "--qmp", "bus.qmp", "--json"])
        shown = capsys.readouterr()
        return json.loads(shown.out) if code == 0 else shown.err

    return run


def test_list_and_show(bus: EmbeddedAttachment, dev: Any, folder: Path) -> None:
    listing = dev("list")
    [disk] = listing["devices"]
    assert disk == {
        "name": "disk0",
        "on_bus": True,
        "type": "block",
        "management": "vduse",
        "driver": "virtio_vdpa",
        "node": f"nbd+unix:///?socket={folder}/disk.sock",
        "max_vqs": 1,
        "max_vq_size": 128,
    }
    assert [management["types"] for management in listing["management"]] == [["net", "block"]]
    [shown] = dev("show", "disk0")["devices"]
    assert shown["device"] == disk
    assert shown["config"]["blk_cfg_capacity"] == SIZE // 512
    assert "FLUSH" in shown["features"]
    assert dev("show")["devices"] == [shown]


def test_nbd_follows_the_driver(bus: EmbeddedAttachment, dev: Any, folder: Path) -> None:
    path = folder / "disk.sock"
    for leave, back in (
        (("bind", "disk0", "vhost_vdpa"), ("bind", "disk0", "virtio_vdpa")),
        (("unbind", "disk0"), ("bind", "disk0", "virtio_vdpa")),
        (("del", "disk0"), ("add", "disk0")),
    ):
        assert dev(*leave)["device"]["node"] is None
        assert not path.exists()
        assert dev(*back)["device"]["driver"] == "virtio_vdpa"
        assert path.exists()


def test_disk_that_has_clients_is_taken_away_by_force_only(
    bus: EmbeddedAttachment, dev: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedAttachment, "clients", lambda *_: 2)
    for argv in (("bind", "disk0", "vhost_vdpa"), ("unbind", "disk0"), ("del", "disk0")):
        refused = dev(*argv)
        assert refused == "vduse: error: disk0 is in use (clients: 2): end them, or --force\n"
    assert dev("bind", "disk0", "virtio_vdpa")["event"] == "bound"  # has it already
    assert dev("del", "disk0", "--force")["event"] == "deleted"


def test_disk_that_could_not_be_taken_away_in_order_is_served_again(
    bus: EmbeddedAttachment, dev: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = NbdServer.close

    def unanswered(server: NbdServer, *patience: float) -> bool:
        close(server, *patience)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(NbdServer, "close", unanswered)
        assert "requests were not answered within" in dev("unbind", "disk0")
    [disk] = dev("list")["devices"]
    assert (disk["driver"], disk["node"]) == ("virtio_vdpa", bus.place("disk0"))
    assert disk["node"] is not None


@pytest.mark.parametrize(
    ("argv", "refusal"),
    [
        (("add", "disk0"), "disk0 is on the vDPA bus already"),
        (("add", "disk1"), "no device 'disk1'; there are: disk0"),
        (("add", "disk0", "--management", "x"), "no management device x: there is vduse"),
        (("add", "disk0", "--mtu", "1500"), "the embedded framework sets no MTU: leave out --mtu"),
        (("del", "disk1"), "disk1 is not on the vDPA bus"),
        (("unbind", "disk1"), "disk1 is not on the vDPA bus"),
        (("show", "disk1"), "no device 'disk1'; there are: disk0"),
    ],
)
def test_refusals(bus: EmbeddedAttachment, dev: Any, argv: tuple[str, ...], refusal: str) -> None:
    assert dev(*argv) == f"vduse: error: {refusal}\n"


def test_arguments_are_checked_by_their_models(bus: EmbeddedAttachment, folder: Path) -> None:
    client = QmpClient(str(folder / "bus.qmp"))
    assert client.refusal("vdpa-del") == "Parameter 'name' is missing"
    assert client.refusal("query-vdpa-device", nmae="disk0").startswith("Parameter 'nmae' is un")
    client.close()


def test_nobody_serves_the_socket(dev: Any, folder: Path) -> None:
    assert dev("list") == (
        "vduse: error: bus.qmp: no such socket; vduse blk IMAGE --nbd SOCKET --qmp bus.qmp "
        "serves one\n"
    )


def test_a_path_that_no_socket_can_have(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["dev", "list", "--qmp", "s" * 108]) == 2
    assert f"error: {'s' * 108}: AF_UNIX path too long; vduse blk" in capsys.readouterr().err


def test_server_that_speaks_something_else(dev: Any, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("bus.qmp")
        server.listen()

        def answer(text: bytes) -> None:
            client, _ = server.accept()
            with client:
                client.sendall(text)

        for text, why in ((b"hello\n", "not QMP"), (b"{}\n", "not QMP"), (b"", "has ended")):
            thread = threading.Thread(target=answer, args=(text,))
            thread.start()
            assert why in dev("list")
            thread.join()


def test_socket_that_cannot_be_had(folder: Path) -> None:
    attachment = EmbeddedAttachment(NBD, Framework(), qmp="no/bus.qmp")
    with local_blk(attachment.control, "disk0", "memory", size=SIZE) as device:
        with pytest.raises(UserError, match=r"no/bus\.qmp: no such directory"):
            attachment.attach(device)
        attachment.detach(answering=True)
    attachment.close()


@pytest.mark.parametrize("answer", [b'{"error": 5}', b'{"error": null}', b"[]", b"x" * (2 << 20)])
def test_a_server_that_speaks_otherwise(folder: Path, dev: Any, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("bus.qmp")
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(b'{"QMP": {}}\n')
                lines.readline()
                connection.sendall(b'{"return": {}}\n')
                lines.readline()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(answer + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert dev("list") == "vduse: error: bus.qmp: not QMP\n"
        thread.join()
