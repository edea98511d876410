"""`vduse storage-daemon` on the embedded framework: its exports' disks, QMP beside them."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.held import nothing_left
from tests.unit.qmp_client import QmpClient
from vduse import _native
from vduse.backends.file import open_file
from vduse.bus import virtio_blk
from vduse.channel.embedded import EmbeddedControl
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.chardevs import Chardev
from vduse.daemon.storage.commands import commands
from vduse.daemon.storage.daemon import Daemon, OptionError
from vduse.daemon.storage.nodes import file
from vduse.daemon.storage.pidfile import PidFile
from vduse.framework import Framework

MIB = 1 << 20


class Host:
    """A framework in the kernel's place, and a folder for images and sockets."""

    def __init__(self, framework: Framework, folder: Path) -> None:
        self.framework = framework
        self.folder = folder
        self.socket = str(folder / "qmp.sock")
        self.image = self.folder / "disk.img"
        with self.image.open("wb") as file:
            file.truncate(MIB)

    @contextmanager
    def daemon(self, *options: str, pidfile: str | None = None) -> Iterator[Daemon]:
        """A daemon with these options, ``--name=text`` each."""
        control = EmbeddedControl(self.framework.control())
        try:
            split = [(name, text) for name, _, text in (o[2:].partition("=") for o in options)]
            daemon = Daemon(control, split, pidfile=pidfile)
            try:
                yield daemon
            finally:
                daemon.close()
        finally:
            control.close()

    @contextmanager
    def client(self, *options: str) -> Iterator[QmpClient]:
        """A daemon and a client of its monitor."""
        with self.daemon(*options, *self.monitor()), QmpClient(self.socket) as client:
            yield client

    def monitor(self) -> tuple[str, str]:
        return (
            f"--chardev=socket,id=mon,path={self.socket},server=on,wait=off",
            "--monitor=chardev=mon",
        )

    def file_node(self, name: str = "disk0", more: str = "") -> str:
        return f"--blockdev=driver=file,filename={self.image},node-name={name}{more}"

    def refusal(self, *options: str) -> str:
        """Why the last of the options is refused, without the option itself."""
        with pytest.raises(OptionError) as refused, self.daemon(*options):
            pass
        name, _, text = options[-1].partition("=")
        prefix = f"{name} {text}: "
        assert str(refused.value).startswith(prefix)
        return str(refused.value).removeprefix(prefix)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Framework() as framework:
        yield Host(framework, tmp_path)


EXPORT = "--export=vduse-blk,id=test,node-name=disk0"


def test_the_rfcs_command_with_a_file_in_the_place_of_nullb0(host: Host) -> None:
    with host.daemon(
        f"--chardev=socket,id=charmonitor,path={host.socket},server,nowait",
        "--monitor=chardev=charmonitor",
        f"--blockdev=driver=file,cache.direct=off,filename={host.image},node-name=disk0",
        "--export=vduse-blk,id=test,node-name=disk0,writable=on,vduse-id=1,num-queues=16,"
        "queue-size=128",
    ):
        host.framework.dev_add("vduse1")
        disk = host.framework.disk("vduse1")
        disk.pwrite(b"x" * 4096, 4096)
        disk.flush()
        assert disk.pread(4096, 4096) == b"x" * 4096
        host.framework.dev_del("vduse1")
    assert host.image.read_bytes()[4096:8192] == b"x" * 4096
    assert host.framework.devices == {}


def test_todays_spelling(host: Host) -> None:
    with host.client(
        host.file_node(),
        "--export=type=vduse-blk,id=test,node-name=disk0,name=d,num-queues=2,queue-size=64,"
        "serial=S1,logical-block-size=4096,writable=on",
    ) as client:
        host.framework.dev_add("d")
        assert host.framework.disk("d").serial() == "S1"
        assert client.call("query-block-exports") == [
            {
                "id": "test",
                "type": "vduse-blk",
                "node-name": "disk0",
                "shutting-down": False,
            }
        ]
        host.framework.dev_del("d")


def test_json(host: Host) -> None:
    blockdev = {
        "driver": "file",
        "filename": str(host.image),
        "node-name": "disk0",
        "read-only": True,
        "cache": {"direct": False},
    }
    export = {"type": "vduse-blk", "id": "test", "node-name": "disk0", "name": "d"}
    chardev, _ = host.monitor()
    with host.daemon(
        f"--blockdev={json.dumps(blockdev)}",
        f"--export={json.dumps(export)}",
        chardev,
        '--monitor={"chardev": "mon", "mode": "control", "pretty": true}',
    ):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(host.socket)
            assert raw.recv(100).startswith(b'{\r\n    "QMP": {\r\n')
        host.framework.dev_add("d")
        assert host.framework.disk("d").read_only
        host.framework.dev_del("d")


def test_results_are_what_the_table_says(host: Host) -> None:
    group = "--object=throttle-group,id=tg0"
    needs = {"qom-get": {"path": "tg0", "property": "limits"}}
    with host.daemon(group, host.file_node(), f"{EXPORT},name=d", *host.monitor()) as daemon:
        rows = [r for r in commands(daemon.store, lambda: None) if r.result is not None]
        with QmpClient(host.socket) as client:
            for row in rows:
                result = client.call(row.name, **needs.get(row.name, {}))
                assert msgspec.convert(result, row.result)
    assert [row.name for row in rows] == [
        "qom-get",
        "query-block-exports",
        "query-named-block-nodes",
        "query-blockstats",
        "x-query-state",
        "query-version",
        "query-qmp-schema",
    ]


def test_a_resize_reaches_the_driver(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    # The driver looks at its config space on a thread of the framework's.
    resized = threading.Event()
    monkeypatch.setattr(virtio_blk.log, "info", lambda *_: resized.set())
    with host.client(host.file_node(), f"{EXPORT},name=d,writable=on") as client:
        host.framework.dev_add("d")
        disk = host.framework.disk("d")
        assert disk.size == MIB
        assert client.call("block_resize", node_name="disk0", size=2 * MIB) == {}
        assert resized.wait(60)
        disk.pwrite(b"y" * 512, MIB)  # beyond the former end
        assert disk.size == 2 * MIB
        [node] = client.call("query-named-block-nodes")
        assert node["image"]["virtual-size"] == host.image.stat().st_size == 2 * MIB
        host.framework.dev_del("d")


def test_a_resize_through_raw(host: Host) -> None:
    raw = f"--blockdev=driver=raw,node-name=disk0,file.driver=file,file.filename={host.image}"
    with host.client(raw, f"{EXPORT},name=d") as client:
        client.call("block_resize", node_name="disk0", size=2 * MIB)
        assert host.image.stat().st_size == 2 * MIB
        assert [n["node-name"] for n in client.call("query-named-block-nodes")] == [
            "#disk0",
            "disk0",
        ]


@pytest.mark.parametrize(
    ("arguments", "desc"),
    [
        ({"size": 0}, "Cannot find device='' nor node-name=''"),
        (
            {"size": 0, "node-name": "disk"},
            "Cannot find device='' nor node-name='disk', did you mean 'disk0'?",
        ),
        ({"size": 0, "device": "d"}, "Cannot find device='d' nor node-name=''"),
        ({"size": -1, "node-name": "disk0"}, "Parameter 'size' expects a >0 size"),
        (
            {"size": 1000, "node-name": "disk0"},
            "Parameter 'size' expects a multiple of 512 below 2^63",
        ),
        (
            {"size": 1 << 63, "node-name": "disk0"},
            "Parameter 'size' expects a multiple of 512 below 2^63",
        ),
        ({"size": 512, "node-name": "n"}, "Image format driver does not support resize"),
        ({"size": 512, "node-name": "ro"}, "Node 'ro' is read only"),
        ({"size": "1", "node-name": "n"}, "Invalid parameter type for 'size', expected: integer"),
    ],
)
def test_resizes_that_are_refused(host: Host, arguments: dict[str, object], desc: str) -> None:
    with host.client(
        host.file_node(),
        host.file_node("ro", ",read-only=on,locking=off"),
        "--blockdev=null-co,node-name=n",
    ) as client:
        assert client.refusal("block_resize", **arguments) == desc
    assert host.image.stat().st_size == MIB


def test_a_filename_that_is_no_utf8_does_not_end_the_connection(host: Host) -> None:
    host.image = host.image.rename(host.folder / os.fsdecode(b"disk\xff.img"))
    with host.client(host.file_node()) as client:
        [node] = client.call("query-named-block-nodes")
        assert node["node-name"] == "disk0"
        assert client.call("query-block-exports") == []


def test_a_file_in_the_place_of_the_nodes_is_not_resized(host: Host) -> None:
    with host.client(host.file_node()) as client:
        os.unlink(host.image)
        host.image.write_bytes(bytes(MIB))
        assert "is another file" in client.refusal("block_resize", node_name="disk0", size=2 * MIB)


def test_nodes_and_exports_come_and_go_at_run_time(host: Host) -> None:
    with host.client() as client:
        node = {"driver": "file", "filename": str(host.image), "node-name": "disk0"}
        export = {"type": "vduse-blk", "id": "e", "node-name": "disk0", "name": "d"}
        client.call("blockdev-add", **node)
        client.call("block-export-add", **export)
        in_use = client.refusal("blockdev-del", node_name="disk0")
        assert in_use == "Node disk0 is in use: by export 'e'"
        host.framework.dev_add("d")
        assert client.refusal("block-export-del", id="e") == (
            "export 'e' still in use: vdpa dev del d takes it off the bus"
        )
        host.framework.dev_del("d")
        client.send(b'{"execute": "block-export-del", "arguments": {"id": "e"}}')
        messages = [client.answer(), client.answer()]
        assert {"return": {}} in messages
        [event] = [m for m in messages if "event" in m]
        assert (event["event"], event["data"]) == ("BLOCK_EXPORT_DELETED", {"id": "e"})
        assert host.framework.devices == {}
        client.call("blockdev-del", node_name="disk0")
        assert client.call("query-named-block-nodes") == []
        open_file(str(host.image)).close()  # it is not locked any more


def test_quit_is_answered_and_exports_end(host: Host) -> None:
    with (
        host.daemon(host.file_node(), f"{EXPORT},name=d", *host.monitor()) as daemon,
        QmpClient(host.socket) as client,
    ):
        client.send(b'{"execute": "quit", "id": 1}')
        assert client.answer() == {"return": {}, "id": 1}
        assert daemon.quitting.wait(60)
        daemon.close()
        assert client.answer()["event"] == "BLOCK_EXPORT_DELETED"
        with pytest.raises(EOFError):
            client.answer()
    assert host.framework.devices == {}
    assert [p.name for p in host.folder.iterdir()] == ["disk.img"]


def test_a_device_on_the_bus_stays_and_is_taken_over(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    with host.daemon(host.file_node(), f"{EXPORT},name=d,writable=on"):
        host.framework.dev_add("d")
        disk = host.framework.disk("d")
        disk.pwrite(b"a" * 512, 0)
    assert "d stays, it is on the vDPA bus" in caplog.text
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(disk.pread(512, 0)))
    reader.start()
    with host.daemon(host.file_node(), f"{EXPORT},name=d,writable=on"):
        reader.join()
        assert read == [b"a" * 512]
        host.framework.dev_del("d")
    assert host.framework.devices == {}


def test_options_that_fail_leave_nothing_behind(host: Host) -> None:
    chardev, monitor = host.monitor()
    host.refusal(host.file_node(), f"{EXPORT},name=d", chardev, monitor, "--blockdev=x")
    assert host.framework.devices == {}
    assert [p.name for p in host.folder.iterdir()] == ["disk.img"]
    open_file(str(host.image)).close()


@pytest.mark.parametrize(
    ("option", "desc"),
    [
        ("--blockdev=driver=fil,node-name=a", "'driver' does not accept value 'fil', did you mean"),
        ("--blockdev=driver=vmdk,node-name=a", "'driver' does not accept value 'vmdk': it is"),
        ("--blockdev=node-name=a", "Parameter 'driver' is missing"),
        ("--blockdev=file,node-name=a", "Parameter 'filename' is missing"),
        ("--blockdev=file,filename=IMAGE", "'node-name' must be specified for the root node"),
        ("--blockdev=file,filename=IMAGE,node-name=1x", "Invalid node-name: '1x'"),
        (
            "--blockdev=file,filename=IMAGE,node-name=disk0",
            "Duplicate nodes with node-name='disk0'",
        ),
        (
            "--blockdev=file,filename=IMAGE,node-name=a,cache.drect=on",
            "Parameter 'cache.drect' is unexpected, did you mean 'cache.direct'?",
        ),
        (
            "--blockdev=null-co,node-name=a,filename=IMAGE",
            "Parameter 'filename' is unexpected: it is for driver=file, host_device",
        ),
        (
            "--blockdev=nbd,node-name=a,server.type=unix,server.host=h",
            "Parameter 'server.host' is unexpected: it is for server.type=inet",
        ),
        (
            "--blockdev=file,filename=IMAGE,node-name=a,cache=on",
            "Invalid parameter type for 'cache', expected: object",
        ),
        (
            "--blockdev=file,filename=IMAGE,node-name=a,read-only=maybe",
            "Parameter 'read-only' expects 'on' or 'off'",
        ),
        (
            "--blockdev=file,filename=IMAGE,node-name=a,aio=native",
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ),
        ("--blockdev=file,filename=IMAGE,node-name=a,aio=x", "'aio' does not accept value 'x'"),
        (
            "--blockdev=file,filename=IMAGE,node-name=a,cache.no-flush=on",
            "Parameter 'cache.no-flush' does not accept 'on'",
        ),
        (
            "--blockdev=file,filename=IMAGE,node-name=a,detect-zeroes=unmap",
            "Parameter 'detect-zeroes' does not accept value 'unmap': it is one of off",
        ),
        (
            "--blockdev=file,filename=IMAGE,node-name=a,force-share=on",
            "force-share=on can only be used with read-only images",
        ),
        (
            "--blockdev=file,filename=IMAGE.none,node-name=a",
            "Could not open 'IMAGE.none': No such file or directory",
        ),
        ("--blockdev=file,filename=/dev/null,node-name=a", "requires '/dev/null' to be a regular"),
        (
            "--blockdev=host_device,filename=IMAGE,node-name=a",
            "'host_device' driver requires 'IMAGE' to be a block device",
        ),
        ("--blockdev=null-co,node-name=a,read-zeroes=on", "'read-zeroes' does not accept 'on'"),
        ("--blockdev=null-co,node-name=a,size=1M", "Parameter 'size' expects integer"),
        ("--blockdev=null-co,node-name=a,size=-1", "expects a multiple of 512 above 0"),
        ("--blockdev=null-co,node-name=a,size=0x201", "expects a multiple of 512 above 0"),
        ("--blockdev=null-co,node-name=a,latency-ns=-1", "latency-ns is invalid"),
        ("--blockdev=raw,node-name=a,file=b", "Cannot find device='b' nor node-name='b'"),
        ("--blockdev=raw,node-name=a,file=ro,read-only=off", "Block node is read-only"),
        ("--blockdev=raw,node-name=a,file=disk0,offset=x", "Parameter 'offset' expects integer"),
        (
            "--blockdev=raw,node-name=a,file.driver=null-co,file.node-name=a",
            "Duplicate nodes with node-name='a'",
        ),
        (
            "--blockdev=raw,node-name=a,file.driver=null-co,file.size=1",
            "Parameter 'size' expects a multiple of 512 above 0",
        ),
        ("--export=type=fuse,id=e,node-name=disk0", "'type' does not accept value 'fuse': it is"),
        ("--export=id=e,node-name=disk0,name=d", "Parameter 'type' is missing"),
        ("--export=vduse-blk,id=e,node-name=disk0", "Parameter 'name' is missing"),
        ("--export=vduse-blk,id=1e,node-name=disk0,name=d", "Invalid block export id"),
        (
            "--export=vduse-blk,id=e,node-name=disk1,name=d",
            "Cannot find device='' nor node-name='disk1', did you mean 'disk0'?",
        ),
        (
            "--export=vduse-blk,id=e,node-name=ro,name=d,writable=on",
            "Cannot export read-only node as writable",
        ),
        ("--export=vduse-blk,id=e,node-name=disk0,name=d,vduse-id=1", "are mutually exclusive"),
        ("--export=vduse-blk,id=e,node-name=disk0,vduse-id=-1", "expects a number of 0 or above"),
        ("--export=vduse-blk,id=e,node-name=disk0,name=d,num-queues=0", "num-queues must be from"),
        ("--export=vduse-blk,id=e,node-name=disk0,name=d,queue-size=3", "queue-size: 3 is not a"),
        (
            "--export=vduse-blk,id=e,node-name=disk0,name=d,logical-block-size=513",
            "logical-block-size: 513 is not a power of two between 512 and 2097152",
        ),
        (
            "--export=vduse-blk,id=e,node-name=disk0,name=d,serial=123456789012345678901",
            "is not at most 20 ASCII characters",
        ),
        (
            "--export=vduse-blk,id=e,node-name=disk0,name=d,writethrough=on",
            "Parameter 'writethrough' does not accept 'on'",
        ),
        ("--export=vduse-blk,id=e,node-name=disk0,name=d,iothread=x", "'iothread' is unexpected"),
        ("--export=vduse-blk,id=e,node-name=disk0,name=", "name"),
        ("--monitor=chardev=c", 'chardev "c" not found'),
        ("--monitor=mon,mode=readline", "'mode' does not accept value 'readline': it is one of"),
        ("--monitor=mon,pretty", "Expected '=' after parameter 'pretty'"),
        ("--chardev=socket,path=p", "Parameter 'id' is missing"),
        ("--chardev=socket,id=c", "one of 'path' and 'fd' is required"),
        ("--chardev=socket,id=c,path=p", "Parameter 'server' must be 'on'"),
        ("--chardev=stdio,id=c", "'backend' does not accept value 'stdio': it is one of socket"),
        ("--chardev=socket,id=c,host=h,port=1", "Parameter 'host' is unexpected"),
        ("--chardev=socket,id=mon,path=p,server=on", "Chardev with id 'mon' already exists"),
        ("--chardev=socket,id=c,path=/none/p,server=on,wait=off", "/none/p: no such directory"),
        ("--chardev=socket,id=c,fd=999,server=on", "fd 999 is not open"),
        ("--chardev=socket,id=c,fd=1,server=on", "fd 1 is no socket"),
    ],
)
def test_options_that_are_refused(host: Host, option: str, desc: str) -> None:
    said = host.refusal(
        host.file_node(),
        host.file_node("ro", ",read-only=on,locking=off"),
        host.monitor()[0],
        option.replace("IMAGE", str(host.image)),
    )
    assert desc.replace("IMAGE", str(host.image)) in said


def test_a_chardev_has_one_monitor(host: Host) -> None:
    assert host.refusal(*host.monitor(), "--monitor=mon") == "Device 'mon' is in use"


def test_several_monitors(host: Host) -> None:
    other = str(host.folder / "other.sock")
    with (
        host.client(
            f"--chardev=socket,id=o,path={other},server=on,wait=off", "--monitor=o"
        ) as first,
        QmpClient(other) as second,
    ):
        first.call("blockdev-add", driver="null-co", node_name="n")
        assert len(second.call("query-named-block-nodes")) == 1


def test_what_cannot_be_written_is_opened_read_only(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotWritable:
        """The native module to somebody who may only read."""

        class Backend:
            @staticmethod
            def file(path: str, *, read_only: bool, **settings: Any) -> _native.Backend:
                if not read_only:
                    raise PermissionError(errno.EACCES, "Permission denied")
                return _native.Backend.file(path, read_only=True, **settings)

    monkeypatch.setattr(file, "_native", NotWritable)
    assert host.refusal(host.file_node()) == f"Could not open '{host.image}': Permission denied"
    with host.client(host.file_node(more=",auto-read-only=on")) as client:
        [info] = client.call("query-named-block-nodes")
        assert info["ro"]


def test_a_device_that_another_program_serves(host: Host) -> None:
    node = "--blockdev=null-co,node-name=disk0"
    with host.daemon(node, f"{EXPORT},name=d"):
        assert host.refusal(node, f"{EXPORT},name=d") == (
            "VDUSE device 'd': another program serves it: stop that one, or use another name"
        )


def test_an_image_is_locked_while_a_node_has_it(host: Host) -> None:
    with host.daemon(host.file_node()):
        assert "locked" in host.refusal(host.file_node())


def test_discards_are_offered_where_the_node_passes_them(host: Host) -> None:
    with host.daemon(
        host.file_node("disk0"),
        "--export=vduse-blk,id=a,node-name=disk0,name=ignore,writable=on",
        "--blockdev=raw,node-name=raw,file.driver=file,discard=unmap,file.locking=off,"
        f"file.filename={host.image}",
        "--export=vduse-blk,id=b,node-name=raw,name=unmap,writable=on",
    ):
        for name in ("ignore", "unmap"):
            host.framework.dev_add(name)
            disk = host.framework.disk(name)
            if name == "unmap":
                disk.discard(0, 4096)
            else:
                with pytest.raises(OSError):
                    disk.discard(0, 4096)
            host.framework.dev_del(name)


def test_null_takes_its_time(host: Host) -> None:
    node = "--blockdev=null-co,node-name=disk0,size=1048576,latency-ns=1000000,read-only=on"
    with host.client(node, f"{EXPORT},name=d") as client:
        host.framework.dev_add("d")
        disk = host.framework.disk("d")
        assert len(disk.pread(512, 0)) == 512
        [info] = client.call("query-named-block-nodes")
        assert (info["drv"], info["ro"], info["image"]["virtual-size"]) == ("null-co", True, MIB)
        host.framework.dev_del("d")


def test_the_pid_file_is_this_daemons_alone(host: Host) -> None:
    path = host.folder / "pid"
    with host.daemon(pidfile=str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()
    with pytest.raises(OptionError) as refused, host.daemon(pidfile="/none/pid"):
        pass
    assert str(refused.value) == "cannot create PID file: '/none/pid': No such file or directory"
    with host.daemon(pidfile=str(path)):
        path.unlink()
        path.write_text("another program's\n")
    assert path.read_text() == "another program's\n"


def test_a_pid_file_that_cannot_be_written_is_not_left(host: Host) -> None:
    path = host.folder / "pid"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with nothing_left(), pytest.raises(QmpError, match="File too large"):
            PidFile(str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()


def test_an_inherited_socket(host: Host) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(host.socket)
        listener.listen()
        fd = listener.fileno()
        with (
            host.daemon(f"--chardev=socket,id=c,fd={fd},server=on,wait=off", "--monitor=c"),
            QmpClient(host.socket) as client,
        ):
            assert client.call("query-block-exports") == []


def test_a_chardev_may_wait_for_its_client(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    wait = Chardev.wait

    def told(chardev: Chardev) -> None:
        waiting.set()
        wait(chardev)

    monkeypatch.setattr(Chardev, "wait", told)
    answers = []

    def client() -> None:
        waiting.wait(60)
        with QmpClient(host.socket) as early:
            answers.append(early.call("query-block-exports"))

    thread = threading.Thread(target=client)
    thread.start()
    with host.daemon(f"--chardev=socket,id=c,path={host.socket},server=on", "--monitor=c"):
        thread.join()
    assert answers == [[]]
