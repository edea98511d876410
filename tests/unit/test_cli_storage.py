"""`vduse storage-daemon`, the command: its options' order, its mistakes, its ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.qmp_client import QmpClient
from vduse.channel.embedded import EmbeddedControl
from vduse.channel.kernel import KernelControl
from vduse.channel.recording import Reader
from vduse.daemon import cli
from vduse.daemon.commands import TABLE, StorageDaemonOptions
from vduse.daemon.errors import UserError
from vduse.daemon.main import main
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage import serve
from vduse.daemon.storage.chardevs import Chardev
from vduse.daemon.storage.models import ChardevOptions
from vduse.framework import Framework


def test_the_order_of_options_is_kept() -> None:
    line = "storage-daemon --chardev c1 --blockdev b1 --chardev c2 --monitor=m1 --export e1"
    assert cli.parse(TABLE, [*line.split(), "--pidfile", "p"]).options == StorageDaemonOptions(
        objects=(
            ("chardev", "c1"),
            ("blockdev", "b1"),
            ("chardev", "c2"),
            ("monitor", "m1"),
            ("export", "e1"),
        ),
        pidfile="p",
    )
    assert cli.parse(TABLE, ["storage-daemon"]).options == StorageDaemonOptions()


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--exprot", ", did you mean '--export'"),
        ("--obejct", ", did you mean '--object'"),
        ("--trace", ", did you mean '--trace-json'"),
    ],
)
def test_an_unknown_option_is_named(option: str, hint: str) -> None:
    with pytest.raises(UserError) as refused:
        cli.parse(TABLE, ["storage-daemon", option, "x"])
    assert f"unknown option '{option}'{hint}" in str(refused.value)


@pytest.mark.parametrize(
    "option",
    [
        "secret,id=s,data=hunter2,foo=1",
        '{"qom-type": "secret", "id": "s", "data": "hunter2", "foo": 1}',
        "secret,id=s,data=hunter2,format=base64",
    ],
)
def test_a_mistake_about_a_secret_does_not_tell_it(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["storage-daemon", "--object", option]) == 2
    told = capsys.readouterr().err
    assert "--object qom-type=secret,...: " in told
    assert "hunter2" not in told


def test_a_sockets_path_with_a_zero_byte_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "disks.toml"
    file.write_text('[nbd-server]\naddr = {type = "unix", path = "/run/\\u0000"}\n')
    assert main(["storage-daemon", "--config", str(file)]) == 2
    assert "zero byte" in capsys.readouterr().err


def test_a_mistake_names_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["storage-daemon", "--blockdev", "fil,node-name=a"]) == 2
    assert capsys.readouterr().err == (
        "vduse: error: --blockdev fil,node-name=a: Parameter 'driver' does not accept value "
        "'fil', did you mean 'file'?\n"
    )


def test_without_the_module_it_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "KernelControl", lambda: KernelControl(str(tmp_path)))
    argv = ["--blockdev", "null-co,node-name=a", "--export", "vduse-blk,id=e,node-name=a,name=d"]
    assert main(["storage-daemon", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"vduse: error: --export {argv[-1]}: VDUSE device 'd': {tmp_path}/")
    assert "modprobe vduse" in error


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> Iterator[Framework]:
    """In the kernel's place."""
    with Framework() as framework:
        monkeypatch.setattr(serve, "KernelControl", lambda: EmbeddedControl(framework.control()))
        yield framework


def _run(folder: Path, end: Callable[[QmpClient], object], *more: str) -> int:
    """The command's exit code; ``end`` is called once it answers."""
    path, pid = str(folder / "qmp.sock"), folder / "pid"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = os.dup(listener.fileno())

    def client() -> None:
        with QmpClient(path) as qmp:
            assert pid.read_text() == f"{os.getpid()}\n"
            end(qmp)

    thread = threading.Thread(target=client)
    thread.start()
    code = main(
        [
            "storage-daemon",
            *("--blockdev", "null-co,node-name=a,size=1048576"),
            *("--export", "vduse-blk,id=e,node-name=a,name=d"),
            *("--chardev", f"socket,id=c,fd={fd},server=on,wait=off"),
            *("--monitor", "c", "--pidfile", str(pid)),
            *more,
        ]
    )
    thread.join()
    assert not pid.exists()
    return code


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_order(
    framework: Framework,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    signum: signal.Signals,
) -> None:
    former = signal.getsignal(signum)
    assert _run(tmp_path, lambda _: os.kill(os.getpid(), signum)) == 0
    assert framework.devices == {}
    assert capsys.readouterr().out == (
        f"d: 1 MiB, read-only\n  vdpa dev add name d mgmtdev vduse\nended by {signum.name}\n"
    )
    assert signal.getsignal(signum) is former


def test_what_the_file_says_holds_where_the_command_line_says_nothing(
    framework: Framework, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "disks.toml"
    file.write_text(
        f"""
        pidfile = "{tmp_path}/file.pid"
        metrics = "unix:{tmp_path}/file.sock"
        log-format = "json"
        log-level = "error"
        """
    )

    def look(qmp: QmpClient) -> None:
        assert (tmp_path / "file.sock").is_socket()
        assert not (tmp_path / "file.pid").exists()  # but that of the command line
        logging.getLogger("vduse.test").info("looked")
        qmp.call("quit")

    assert _run(tmp_path, look, "--config", str(file), "--log-level", "info") == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines if line["source"] == "test"] == ["looked"]


def test_quit_ends_it(
    framework: Framework, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path, lambda qmp: qmp.call("quit"), "--json") == 0
    serving, ended = map(json.loads, capsys.readouterr().out.splitlines())
    device = {
        "id": "e",
        "type": "vduse-blk",
        "node_name": "a",
        "name": "d",
        "size": 1 << 20,
        "read_only": True,
    }
    assert serving == {"event": "serving", "pid": os.getpid(), "exports": [device]}
    assert ended == {"event": "ended", "reason": "quit"}


@pytest.mark.parametrize(
    ("kind", "listens", "why"),
    [
        (socket.SOCK_SEQPACKET, True, "is no stream socket"),
        (socket.SOCK_DGRAM, False, "is no stream socket"),
        (socket.SOCK_STREAM, False, "does not listen"),
    ],
)
def test_a_monitors_socket_is_a_listening_stream(
    tmp_path: Path, kind: socket.SocketKind, listens: bool, why: str
) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(tmp_path / "sock"))
        if listens:
            sock.listen()
        with pytest.raises(QmpError, match=f"fd {sock.fileno()} {why}"):
            Chardev(ChardevOptions(id="c", fd=str(sock.fileno()), server=True))
        assert sock.getsockname()  # it is still its owner's


def test_a_recording_of_the_devices_side(framework: Framework, tmp_path: Path) -> None:
    path = str(tmp_path / "disk.trace")
    assert _run(tmp_path, lambda qmp: qmp.call("quit"), "--trace-json", path) == 0
    with open(path, "rb") as file:
        reader = Reader(file, path)
        lines = [entry.line() for entry in reader]
    assert (reader.header.framework, reader.header.seen_by) == ("kernel", "device")
    assert reader.cut is None
    assert [line.split("(")[0] for line in lines] == [
        *("control SET_API_VERSION", "control CREATE_DEV", "d open", "d VQ_SETUP"),
        "d LOG_GET_FD",  # what stands in for the kernel has it
        *("d close", "control DESTROY_DEV"),
    ]
