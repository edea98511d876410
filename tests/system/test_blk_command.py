"""`vduse blk`, as a newcomer runs it: what it says, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.means import find_program
from tests.system.test_bad_input import Person
from tests.system.test_demo import locked_as_by_qemu

SIZE = 16 << 20
RAM_DISK = """
from vduse.backends.python import PythonBackend

class Ram(PythonBackend):
    def __init__(self, size):
        self.size = size
        self.data = bytearray(size)

    def read(self, offset, buffer):
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, offset, buffer):
        self.data[offset : offset + len(buffer)] = buffer
"""


class Command:
    """``vduse blk`` in a folder, running."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        door: str = "--nbd",
        stdin: int | None = None,
        stdout: int = subprocess.PIPE,
    ) -> None:
        self.folder = folder
        self.socket = folder / "disk.sock"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vduse.daemon", "blk", door, "disk.sock", *arguments],
            cwd=folder,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.socket}"

    def line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, err = self.process.communicate()
            raise AssertionError(f"ended with {self.process.returncode}: {err}")
        return line

    def facts(self) -> dict[str, Any]:
        """The next line, as JSON."""
        facts: dict[str, Any] = json.loads(self.line())
        return facts

    def until(self, word: str) -> str:
        """What it prints up to the line that has the word."""
        text = ""
        while word not in text:
            text += self.line()
        return text

    def end(self, signum: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code and the rest of both outputs after a signal."""
        self.process.send_signal(signum)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def run(program: str, *arguments: str, check: bool = True) -> str:
    """What a program prints."""
    path = find_program(program)
    assert path is not None
    done = subprocess.run(
        [path, *arguments], capture_output=True, errors="replace", timeout=60, check=False
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout


@contextmanager
def command(folder: Path, *arguments: str, door: str = "--nbd") -> Iterator[Command]:
    started = Command(folder, *arguments, door=door)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


# --- what it says ----------------------------------------------------------------------------


@pytest.mark.needs("nbdinfo", "nbdcopy", "qemu-img", "qemu-io")
def test_newcomer_pastes_what_it_prints(tmp_path: Path, image: Path) -> None:
    image.write_bytes(os.urandom(1 << 20) + bytes(SIZE - (1 << 20)))
    with command(tmp_path, "disk.img") as blk:
        text = blk.until("Ctrl-C")
        assert text.startswith("disk0: 16 MiB, disk.img\n")
        assert f"serves {blk.uri}\n" in text
        lines = re.findall(r"^  ((?:nbdinfo|nbdcopy|qemu-img) .*)$", text, re.MULTILINE)
        assert len(lines) == 3
        for line in lines:
            done = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "disk0.img").read_bytes() == image.read_bytes()
        run(
            "qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(image), f"{tmp_path}/disk0.qcow2"
        )
        run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 4k 64k", blk.uri)
        code, out, err = blk.end()
    assert (code, err) == (0, "")
    assert out == "disk0: stopped by SIGTERM, all is flushed\n"
    assert image.read_bytes()[4096 : 17 * 4096] == b"\x5a" * (16 * 4096)
    assert not blk.socket.exists()


@pytest.mark.needs("loop", "nbdfuse", "losetup", "umount")
def test_block_device_line(tmp_path: Path, image: Path) -> None:
    image.write_bytes(b"contents" * (SIZE // 8))
    with command(tmp_path, "disk.img", "--name", "loopy") as blk:
        text = blk.until("Ctrl-C")
        [line] = re.findall(r"^  (mkdir .*)$", text, re.MULTILINE)
        # To a file: nbdfuse, which stays, has it open too.
        with (tmp_path / "out").open("w+") as out:
            subprocess.run(["bash", "-c", line], cwd=tmp_path, stdout=out, check=True)
        device = (tmp_path / "out").read_text().strip()
        try:
            assert device.startswith("/dev/loop")
            with open(device, "rb") as disk:
                assert disk.read(8) == b"contents"
        finally:
            if device:
                run("losetup", "--detach", device)
            run("umount", str(tmp_path / "loopy"))
        assert blk.end()[0] == 0


def test_facts_as_lines_of_json(tmp_path: Path) -> None:
    options = "memory --size 16M --name ram --queues 2 --queue-size 64 --packed --json"
    with command(tmp_path, *options.split()) as blk:
        assert blk.facts() == {
            "event": "serving",
            "pid": blk.process.pid,
            "name": "ram",
            "backend": "memory",
            "size": SIZE,
            "read_only": False,
            "ring": "packed",
            "queues": 2,
            "queue_size": 64,
            "engine": "none",
            "via": "embedded",
            "why": "the framework in this process, because --nbd is its socket",
            "driver": "virtio_vdpa",
            "node": None,
            "socket": str(blk.socket),
            "uri": blk.uri,
            "connects": False,
        }
        code, out, err = blk.end(signal.SIGINT)
    assert (code, err) == (0, "")
    [ended] = map(json.loads, out.splitlines())
    assert (ended["event"], ended["name"], ended["reason"]) == ("ended", "ram", "SIGINT")
    assert ended["broken"] is False
    assert set(ended["statistics"]) == {"devices", "disks", "exports", "workers"}


@pytest.mark.needs("nbdcopy")
def test_workers_are_pinned_and_do_not_poll_where_that_is_asked_for(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    options = ("--cpus", str(cpu), "--no-poll", "--json")
    with command(tmp_path, "memory", "--size", "4M", *options) as blk:
        blk.until("serving")
        pinned = [
            thread
            for thread in Path(f"/proc/{blk.process.pid}/task").iterdir()
            if (thread / "comm").read_text().startswith("vduse-worker")
            and f"Cpus_allowed_list:\t{cpu}\n" in (thread / "status").read_text()
        ]
        assert len(pinned) == 1
        run("nbdcopy", blk.uri, str(tmp_path / "copy"))
        code, out, _ = blk.end()
        assert code == 0
    ended = json.loads(out)
    [worker] = ended["statistics"]["workers"]
    assert (worker["poll_found_ns"], worker["poll_vain_ns"]) == (0, 0)
    assert worker["sleeps"] > 0


def test_a_cpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    with command(tmp_path, "memory", "--size", "4M", "--cpus", "1023") as blk:
        _, err = blk.process.communicate(timeout=60)
    assert blk.process.returncode == 2
    assert "--cpus: CPU 1023 is not there, or not allowed to this process" in err


@pytest.mark.needs("nbdinfo")
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_sigusr1_prints_the_statistics(tmp_path: Path, option: tuple[str, ...]) -> None:
    with command(tmp_path, "memory", "--size", "16M", *option) as blk:
        blk.until("serving" if option else "Ctrl-C")
        run("nbdinfo", blk.uri)
        for _ in range(2):
            blk.process.send_signal(signal.SIGUSR1)
            counted = blk.facts()
            if option:
                assert counted["event"] == "statistics"
                counted = counted["statistics"]
            assert counted["exports"]["disk.sock"]["connections"] >= 1
            assert counted["disks"]["disk0"]["requests"] >= 1
            assert counted["devices"]["disk0"]["requests"] >= 1
        assert blk.end()[0] == 0


@pytest.mark.parametrize(("option", "mode"), [((), 0o600), (("--nbd-mode", "0666"), 0o666)])
def test_mode_of_the_socket(tmp_path: Path, option: tuple[str, ...], mode: int) -> None:
    with command(tmp_path, "memory", "--size", "1M", *option) as blk:
        blk.until("Ctrl-C")
        assert stat.S_IMODE(blk.socket.stat().st_mode) == mode
        assert blk.end()[0] == 0


@pytest.mark.needs("nbdinfo", "qemu-io")
def test_read_only_image_is_not_written(tmp_path: Path, image: Path) -> None:
    image.chmod(0o400)
    with command(tmp_path, "disk.img", "--read-only") as blk:
        blk.until("Ctrl-C")
        [export] = json.loads(run("nbdinfo", "--json", blk.uri))["exports"]
        assert export["is_read_only"] is True
        refused = run("qemu-io", "-f", "raw", "-c", "write 0 4k", blk.uri, check=False)
        assert "wrote" not in refused
        assert blk.end()[0] == 0
    assert image.read_bytes() == bytes(SIZE)


@pytest.mark.needs("qemu-io")
def test_layers_go_on_the_backend(tmp_path: Path, image: Path) -> None:
    layers = ("--layer", "overlay", "--layer", "delay,flush=1ms")
    with command(tmp_path, "disk.img", *layers) as blk:
        blk.until("Ctrl-C")
        run("qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", "-c", "read -P 1 0 4k", blk.uri)
        assert blk.end()[0] == 0
    assert image.read_bytes() == bytes(SIZE)


@pytest.mark.needs("qemu-io")
def test_python_backend(tmp_path: Path) -> None:
    (tmp_path / "ram.py").write_text(RAM_DISK)
    with command(tmp_path, "python:ram:Ram", "--size", "1M", "--json") as blk:
        facts = blk.facts()
        assert (facts["engine"], facts["size"]) == ("python", 1 << 20)
        run("qemu-io", "-f", "raw", "-c", "write -P 7 4k 4k", "-c", "read -P 7 4k 4k", blk.uri)
        assert blk.end()[0] == 0


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(RAM_DISK)
    with command(tmp_path, "python:m:Ram", "--size", "1M") as blk:
        assert blk.line() == "disk0: 1 MiB, python:m:Ram\n"  # rich has an emoji :m:
        assert blk.end()[0] == 0


@pytest.mark.needs("nbdinfo")
def test_names_that_are_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    image, sock = os.fsdecode(b"d\xff.img"), os.fsdecode(b"s\xff.sock")
    (tmp_path / image).touch()
    os.truncate(tmp_path / image, SIZE)
    with command(tmp_path, image, "--name", image, "--nbd", sock) as blk:
        assert blk.line().startswith("d\\udcff.img: 16 MiB")
        blk.until("Ctrl-C")
        uri = f"nbd+unix:///?socket={tmp_path}/s%FF.sock"
        [export] = json.loads(run("nbdinfo", "--json", "--list", uri))["exports"]
        assert (export["export-name"], export["description"]) == ("d\ufffd.img", "d\ufffd.img")
        code, _, err = blk.end()
    assert (code, err) == (0, "")


@pytest.mark.needs("nbdinfo")
def test_image_that_is_resized(tmp_path: Path, image: Path) -> None:
    with command(tmp_path, "disk.img", "--json") as blk:
        assert blk.facts()["size"] == SIZE
        os.truncate(image, 2 * SIZE)
        assert blk.facts() == {"event": "resized", "size": 2 * SIZE}
        # The driver reads the config space a little later.
        while int(run("nbdinfo", "--size", blk.uri)) != 2 * SIZE:
            assert blk.process.poll() is None
        os.truncate(image, 1000)
        assert blk.process.stderr is not None
        assert "disk0 keeps its size: " in blk.process.stderr.readline()
        os.truncate(image, SIZE)
        assert blk.facts() == {"event": "resized", "size": SIZE}
        code, _, err = blk.end()
    assert (code, err) == (0, "")


# --- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_client_in_mid_handshake_delays_no_end(tmp_path: Path, signum: signal.Signals) -> None:
    with command(tmp_path, "memory", "--size", "1M") as blk, socket.socket(socket.AF_UNIX) as one:
        blk.until("Ctrl-C")
        one.connect(str(blk.socket))
        assert one.recv(8) == b"NBDMAGIC"
        code, out, _ = blk.end(signum)
        assert code == 0
        assert out == f"disk0: stopped by {signum.name}, all is flushed\n"


@pytest.mark.needs("qemu-io")
def test_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    slow = ("--layer", "delay,flush=1000s")
    with command(tmp_path, "memory", "--size", "1M", *slow) as blk:
        blk.until("Ctrl-C")
        with subprocess.Popen(
            ["qemu-io", "-f", "raw", "-c", "write 0 4k", "-c", "flush", blk.uri],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:
            counted: dict[str, Any] = {}
            while counted.get("devices", {}).get("disk0", {}).get("in_flight") != 1:
                blk.process.send_signal(signal.SIGUSR1)
                counted = blk.facts()
            blk.process.send_signal(signal.SIGTERM)
            while blk.socket.exists():  # the first one is at work
                pass
            code, out, _ = blk.end(signal.SIGINT)
            client.kill()
    assert code == -signal.SIGINT
    assert out == ""


def test_second_signal_ends_a_start_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import os; print('importing', flush=True); os.read(0, 1)")
    hole, keep = os.pipe()
    started = Command(tmp_path, "python:slow:Disk", stdin=hole)
    os.close(hole)
    assert started.line() == "importing\n"
    started.process.send_signal(signal.SIGINT)
    # Python overlooks a signal that comes just before a read begins to wait, until the next.
    while started.process.poll() is None:
        started.process.send_signal(signal.SIGINT)
    code, _, _ = started.end()
    os.close(keep)
    assert code == -signal.SIGINT


def test_second_signal_ends_it_where_nobody_reads_its_output(tmp_path: Path) -> None:
    reader, full = os.pipe()
    os.set_blocking(full, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(full, bytes(1 << 16))
    os.set_blocking(full, True)
    blk = Command(tmp_path, "memory", "--size", "1M", stdout=full)
    while not blk.socket.exists():
        assert blk.process.poll() is None
    blk.process.send_signal(signal.SIGTERM)
    # Python overlooks a signal that comes just before a write begins to wait, until the next.
    while blk.process.poll() is None:
        blk.process.send_signal(signal.SIGINT)
    code, _, _ = blk.end()
    assert code in (-signal.SIGTERM, -signal.SIGINT)
    os.close(full)
    os.close(reader)


def test_sigusr1_storm_changes_no_exit_code(tmp_path: Path) -> None:
    with command(tmp_path, "memory", "--size", "1M", "--json") as blk:
        blk.facts()
        over = threading.Event()

        def storm() -> None:
            while not over.is_set():
                blk.process.send_signal(signal.SIGUSR1)

        asking = threading.Thread(target=storm)
        asking.start()
        counted = [blk.facts() for _ in range(100)]
        code, out, err = blk.end()
        over.set()
        asking.join()
    assert {facts["event"] for facts in counted} == {"statistics"}
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["event"] == "ended"


def test_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    with command(tmp_path, "memory", "--size", "1M") as blk:
        blk.until("Ctrl-C")
        blk.process.kill()
    assert blk.socket.exists()
    with command(tmp_path, "memory", "--size", "1M") as blk:
        blk.until("Ctrl-C")
        assert blk.end()[0] == 0
    assert not blk.socket.exists()


def test_flush_that_fails_at_the_end_is_said(tmp_path: Path) -> None:
    with command(tmp_path, "memory", "--size", "1M", "--layer", "error,ops=flush") as blk:
        blk.until("Ctrl-C")
        code, _, err = blk.end()
    assert code == 1
    *_, last = err.splitlines()
    assert last.startswith("vduse: disk0: what was written may not be on stable storage: ")


def test_second_signal_ends_it_where_the_last_flush_never_does(tmp_path: Path) -> None:
    (tmp_path / "never.py").write_text(
        "from vduse.backends.python import PythonBackend\n"
        "class Never(PythonBackend):\n"
        "    size = 1 << 20\n"
        "    def submit(self, batch):\n"
        "        self.kept = batch\n"
        "        print('flushing' if batch[0].op == 'flush' else batch[0].op, flush=True)\n"
    )
    with command(tmp_path, "python:never:Never") as blk:
        blk.until("Ctrl-C")
        blk.process.send_signal(signal.SIGTERM)
        blk.until("flushing")
        # Python overlooks a signal that comes just before a wait begins, until the next.
        while blk.process.poll() is None:
            blk.process.send_signal(signal.SIGINT)
        assert blk.end()[0] == -signal.SIGINT


# --- bad input: one line, exit code 2, nothing left behind -----------------------------------


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("blk", "name what stores the bytes: an image, null, memory, python:MODULE:CLASS"),
        (
            "blk memory --size 1M --via embedded",
            "say where to serve: --nbd SOCKET or --vhost-user SOCKET",
        ),
        ("blk memory --nbd s", "memory: needs a size: --size 1G"),
        (
            "blk python:nowhere:Disk --nbd s",
            "python:nowhere:Disk: no module nowhere here or on Python's path; "
            "name a file of this directory without .py",
        ),
        (
            "blk memory --size 1000 --nbd s",
            "memory: a size of 1000 bytes is no multiple of 512",
        ),
        ("blk no.img --nbd s", "no.img: no such file; create it: truncate -s 1G no.img"),
        (
            "blk no.img --size 1G --nbd s",
            "no.img: no such file; create it: truncate -s 1073741824 no.img",
        ),
        ("blk . --nbd s", ".: is a directory; name an image file"),
        ("blk null --size 1M --nbd no/s", "no/s: no such directory: make it, or name another"),
        (
            "blk null --size 1M --nbd .",
            ".: exists and is no socket: name another path",
        ),
        (
            "blk null --size 1M --name a/b --nbd s",
            "name: 'a/b' cannot be a file's name below /dev/vduse",
        ),
    ],
)
def test_refusals(person: Person, line: str, refusal: str) -> None:
    assert person.refused(line) == refusal
    assert list(person.cwd.iterdir()) == []


def test_layer_that_there_is_not(person: Person) -> None:
    line = person.refused("blk null --size 1M --layer throtle,iops=1 --nbd s")
    assert line.startswith("no such layer 'throtle'")


def test_size_of_an_image_is_its_own(person: Person) -> None:
    (person.cwd / "disk.img").write_bytes(bytes(512))
    assert person.refused("blk disk.img --size 1M --nbd s").startswith(
        "disk.img: a file has its own size"
    )


def test_socket_path_that_is_too_long(person: Person) -> None:
    line = person.refused(f"blk null --size 1M --nbd {'s' * 108}")
    assert line.endswith(
        ": 108 bytes are too long for a socket's path: at most 107; use a relative or a shorter one"
    )


def test_image_in_use(person: Person) -> None:
    image = person.cwd / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with locked_as_by_qemu(image):
        line = person.refused("blk disk.img --nbd s")
    assert line.startswith("disk.img is in use by another program")
    assert [path.name for path in person.cwd.iterdir()] == ["disk.img"]


def test_live_socket(person: Person) -> None:
    with command(person.cwd, "memory", "--size", "1M") as blk:
        blk.until("Ctrl-C")
        assert person.refused("blk memory --size 1M --nbd disk.sock") == (
            "disk.sock: another server listens there: stop it, or name another path"
        )
        assert blk.end()[0] == 0
