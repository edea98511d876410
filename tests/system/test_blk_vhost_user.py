"""`vduse blk --vhost-user`: what it says, what its virtual machine sees, how it ends."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.means import find_program
from tests.system.raw_vm import SECTOR, T_FLUSH, T_IN, T_OUT, RawVm
from tests.system.test_bad_input import Person
from tests.system.test_blk_command import SIZE, Command, command
from tests.unit.vhost_user_front_end import FrontEnd, u64
from vduse.control.vhost_user import Request

DOOR = "--vhost-user"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def counted(blk: Command) -> dict[str, Any]:
    blk.process.send_signal(signal.SIGUSR1)
    statistics: dict[str, Any] = blk.facts()["statistics"]
    return statistics


def capacity(front_end: FrontEnd) -> int:
    """Bytes, as the config space has it."""
    header = struct.pack("=III", 0, 8, 0)
    return int.from_bytes(front_end.get(Request.GET_CONFIG, header + bytes(8))[12:], "little") * 512


# --- what it says ----------------------------------------------------------------------------


def test_facts_as_lines_of_json(tmp_path: Path) -> None:
    options = "memory --size 16M --queues 2 --packed --json"
    with command(tmp_path, *options.split(), door=DOOR) as blk:
        facts = blk.facts()
        assert (facts["via"], facts["driver"], facts["node"]) == ("embedded", "vhost_vdpa", None)
        assert (facts["socket"], facts["uri"], facts["connects"]) == (str(blk.socket), None, False)
        front_end = FrontEnd(str(blk.socket))
        assert front_end.get(Request.GET_QUEUE_NUM) == u64(2)
        assert counted(blk)["exports"] == {"disk.sock": {"connections": 1, "connected": 1}}
        code, out, err = blk.end()
        assert front_end.gone()
        front_end.close()
    assert (code, err) == (0, "")
    [ended] = map(json.loads, out.splitlines())
    assert (ended["event"], ended["reason"], ended["broken"]) == ("ended", "SIGTERM", False)
    assert not blk.socket.exists()


@pytest.mark.needs("qemu-system-x86_64")
@pytest.mark.parametrize(
    ("options", "chardev", "device"),
    [
        ("", "socket,id=vu,path={socket}", "vhost-user-blk-pci,chardev=vu,num-queues=1"),
        (
            "--queues 4 --queue-size 64 --packed --vhost-user-connect",
            "socket,id=vu,path={socket},server=on",
            "vhost-user-blk-pci,chardev=vu,num-queues=4,queue-size=64,packed=on",
        ),
    ],
)
def test_qemu_takes_the_line_that_it_prints(
    tmp_path: Path, options: str, chardev: str, device: str
) -> None:
    with command(tmp_path, "memory", "--size", "16M", *options.split(), door=DOOR) as blk:
        text = blk.until("Ctrl-C")
        where = "connects to" if "connect" in options else "serves"
        assert f"; {where} {blk.socket}\n" in text
        [line] = re.findall(r"^  qemu-system-x86_64 \.\.\. (.*)$", text, re.MULTILINE)
        memory = "memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem"
        chardev = chardev.format(socket=blk.socket)
        assert line == f"-m 1G -object {memory} -chardev {chardev} -device {device}"
        qemu = find_program("qemu-system-x86_64")
        assert qemu is not None
        alone = ("-nodefaults", "-display", "none", "-S", "-qmp", "stdio")
        vmm = subprocess.Popen(
            [qemu, *alone, *shlex.split(line)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            # It gives up at once what it does not take.
            connected = 0
            while connected == 0:
                assert vmm.poll() is None
                blk.process.send_signal(signal.SIGUSR1)
                statistics = json.loads(blk.until('"exports"').splitlines()[-1])
                connected = statistics["exports"]["disk.sock"]["connected"]
            # It answers once its devices are there.
            assert vmm.stdin is not None and vmm.stdout is not None
            vmm.stdin.write('{"execute": "qmp_capabilities"}')
            vmm.stdin.flush()
            assert "QMP" in json.loads(vmm.stdout.readline())
            assert "return" in json.loads(vmm.stdout.readline())
        finally:
            vmm.kill()
            vmm.communicate()
        assert blk.end()[0] == 0


def test_owner_group_and_mode_of_the_socket(tmp_path: Path) -> None:
    me, mine = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    owner, group = ("nobody", "1") if os.geteuid() == 0 else (me, mine)
    options = f"--vhost-user-mode 0660 --vhost-user-owner {owner} --vhost-user-group {group}"
    with command(tmp_path, "memory", "--size", "1M", *options.split(), door=DOOR) as blk:
        blk.until("Ctrl-C")
        found = blk.socket.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_uid == pwd.getpwnam(owner).pw_uid
        assert found.st_gid == (1 if group == "1" else os.getgid())
        assert blk.end()[0] == 0


def test_it_connects_to_a_socket_that_comes_later(tmp_path: Path) -> None:
    options = "memory --size 1M --vhost-user-connect --json"
    with command(tmp_path, *options.split(), door=DOOR) as blk, socket.socket(socket.AF_UNIX) as vm:
        assert blk.facts()["connects"] is True
        vm.bind(str(blk.socket))
        vm.settimeout(60)
        vm.listen()
        for _ in range(2):
            connection, _ = vm.accept()
            front_end = FrontEnd(connection)
            assert capacity(front_end) == 1 << 20
            front_end.close()
        code, _, err = blk.end()
    assert code == 0
    # What came in between depends on who was quicker; no line comes twice.
    lines = err.splitlines()
    assert len(lines) == len(set(lines))
    assert blk.socket.exists(), "it is the virtual machine's"


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ("--vhost-user s --nbd n", "a device has one driver at a time: --nbd or --vhost-user"),
        ("--vhost-user s --via kernel", "--vhost-user is the embedded framework's: leave it out"),
        ("--vhost-user no/s", "no/s: no such directory: make it, or name another"),
        ("--vhost-user-mode 0600", "--vhost-user-mode is for a socket: --vhost-user SOCKET"),
        (
            "--vhost-user s --vhost-user-owner no-such-user",
            "argument --vhost-user-owner: 'no-such-user' is no user here: name one, or its number",
        ),
        (
            "--vhost-user s --vhost-user-group no-such-group",
            "argument --vhost-user-group: 'no-such-group' is no group here",
        ),
        (
            "--vhost-user s --vhost-user-connect --vhost-user-group 0",
            "the socket is the virtual machine's: leave out --vhost-user-group",
        ),
    ],
)
def test_refusals(person: Person, options: str, refusal: str) -> None:
    assert person.refused(f"blk null --size 1M {options}").startswith(refusal)
    assert list(person.cwd.iterdir()) == []


# --- what the virtual machine sees -----------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_what_a_vm_asked_for_is_finished_and_flushed_at_the_end(
    tmp_path: Path, image: Path, packed: bool
) -> None:
    options = ["--packed"] if packed else []
    slow = ("--layer", "delay,write=2s")
    with (
        command(tmp_path, "disk.img", "--json", *slow, *options, door=DOOR) as blk,
        RawVm(packed=packed) as vm,
    ):
        blk.facts()
        front_end = vm.connect(blk.socket)
        for number in range(4):
            vm.submit(number, T_OUT, number, bytes([number + 1]) * SECTOR)
        while counted(blk)["devices"]["disk0"]["in_flight"] != 4:
            pass
        code, _, err = blk.end()
        assert (code, err) == (0, "")
        assert front_end.gone()
        assert sorted(vm.used_now()) == [0, 1, 2, 3]
    assert image.read_bytes()[: 4 * SECTOR] == b"".join(bytes([n]) * SECTOR for n in range(1, 5))


def test_what_is_never_finished_is_not_called_flushed(tmp_path: Path) -> None:
    options = "memory --size 1M --layer delay,write=1000s --json"
    with (
        command(tmp_path, *options.split(), door=DOOR) as blk,
        RawVm(packed=False) as vm,
    ):
        blk.facts()
        vm.connect(blk.socket)
        vm.submit(0, T_OUT, 0)
        while counted(blk)["devices"]["disk0"]["in_flight"] != 1:
            pass
        code, out, _ = blk.end()
    assert code == 1
    ended = json.loads(out.splitlines()[-1])
    assert ended["broken"] is True
    assert ended["reason"].startswith("not all requests were finished: ")


def test_a_resize_reaches_the_vm(tmp_path: Path, image: Path) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        command(tmp_path, "disk.img", "--json", door=DOOR) as blk,
        RawVm(packed=False) as vm,
    ):
        blk.facts()
        front_end = vm.connect(blk.socket)
        assert front_end.set(Request.SET_BACKEND_REQ_FD, b"", theirs.fileno()) == 0
        assert capacity(front_end) == SIZE
        os.truncate(image, 2 * SIZE)
        assert blk.facts() == {"event": "resized", "size": 2 * SIZE}
        ours.settimeout(60)
        assert ours.recv(100) == struct.pack("=III", 2, 1, 0)  # CONFIG_CHANGE_MSG
        assert capacity(front_end) == 2 * SIZE
        vm.submit(0, T_OUT, SIZE // SECTOR, b"behind the former end".ljust(SECTOR))
        assert vm.used(1) == [0]
        assert blk.end()[0] == 0


def test_what_a_vm_gets_wrong_ends_neither_the_program_nor_the_next_vm(tmp_path: Path) -> None:
    with command(tmp_path, "memory", "--size", "1M", "--json", door=DOOR) as blk:
        blk.facts()
        with RawVm(packed=False) as vm:
            vm.connect(blk.socket)
            vm.offer_nonsense()
            assert blk.process.stderr is not None
            said = blk.process.stderr.readline()
            assert "malformed virtqueue: descriptor index 999 is out of range" in said
        with RawVm(packed=False) as vm:
            vm.connect(blk.socket)
            vm.submit(0, T_FLUSH, 0)
            assert vm.used(1) == [0]
        assert blk.end()[0] == 0


def test_the_bus_takes_the_disk_from_its_vm_and_gives_it_back(tmp_path: Path, image: Path) -> None:
    def dev(*argv: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "vduse.daemon", "dev", *argv, "--qmp", "bus.sock", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    options = ("disk.img", "--qmp", "bus.sock", "--json")
    with command(tmp_path, *options, door=DOOR) as blk, RawVm(packed=False) as vm:
        blk.facts()
        front_end = vm.connect(blk.socket)
        [disk] = dev("list")["devices"]
        assert (disk["driver"], disk["node"]) == ("vhost_vdpa", str(blk.socket))
        assert "disk0 is in use (clients: 1)" in dev("bind", "disk0", "virtio_vdpa")
        vm.submit(0, T_OUT, 7, b"before".ljust(SECTOR))
        assert dev("bind", "disk0", "virtio_vdpa", "--force")["device"]["node"] is None
        assert front_end.gone()
        assert vm.used_now() == [0]
        assert not blk.socket.exists()
        assert counted(blk)["exports"] == {}
        vm.disconnect()
        assert dev("bind", "disk0", "vhost_vdpa")["device"]["node"] == str(blk.socket)
        vm.connect(blk.socket)
        vm.submit(1, T_IN, 7)
        assert vm.used(1) == [1]
        assert vm.data(1) == b"before".ljust(SECTOR)
        assert blk.end()[0] == 0


# --- the program is killed -------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_requests_in_flight_of_a_killed_program_are_done_once_by_the_next(
    tmp_path: Path, image: Path, packed: bool
) -> None:
    """The ring alone does not show which are open: reads that came later have been done."""
    image.write_bytes(b"\xff" * SIZE)
    options = ["disk.img", "--json", *(["--packed"] if packed else [])]
    with RawVm(packed=packed) as vm:
        with command(tmp_path, *options, "--layer", "delay,write=1000s", door=DOOR) as blk:
            blk.facts()
            vm.connect(blk.socket)
            for number in (0, 2, 4):
                vm.submit(number, T_OUT, number, bytes([number]) * SECTOR)
                vm.submit(number + 1, T_IN, 100)
            assert vm.used(3) == [1, 3, 5]
            assert counted(blk)["devices"]["disk0"]["in_flight"] == 3
            blk.process.kill()
        assert blk.socket.exists()
        assert image.read_bytes() == b"\xff" * SIZE
        vm.submit(6, T_OUT, 6, bytes([6]) * SECTOR)  # while nobody is there
        vm.disconnect()
        with command(tmp_path, *options, door=DOOR) as blk:
            blk.facts()
            vm.connect(blk.socket)
            assert sorted(vm.used(4)) == [0, 2, 4, 6]
            vm.submit(7, T_FLUSH, 0)
            assert vm.used(1) == [7]
            device = counted(blk)["devices"]["disk0"]
            assert (device["requests"], device["in_flight"]) == (5, 0)
            code, _, err = blk.end()
            assert (code, err) == (0, "")
        assert vm.used_now() == []
    for number in (0, 2, 4, 6):
        assert image.read_bytes()[number * SECTOR :][:SECTOR] == bytes([number]) * SECTOR
