"""`vduse run`, as a person uses it: what it says, what it refuses, how it ends, what it leaves."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.system.nbd_clients import fio_command, fio_verified, run
from tests.system.seccomp import refuse
from tests.system.test_bad_input import Person
from vduse.testing.run import RunChild, vduse_run

SIZE = 16 << 20
VDUSE = (sys.executable, "-m", "vduse.daemon")
#: A program that does nothing but find things below /dev/vduse.
LOOKS = """
import errno, os, stat
assert stat.S_ISDIR(os.stat('/dev/vduse').st_mode)
assert stat.S_ISCHR(os.stat('/dev/vduse/control').st_mode)
assert stat.S_ISCHR(os.lstat('/dev/../dev//vduse/control').st_mode)
assert os.access('/dev/vduse/control', os.R_OK | os.W_OK)
assert not os.access('/dev/vduse/nothing', os.F_OK)
folder = os.open('/dev', os.O_RDONLY)
os.stat('vduse/control', dir_fd=folder)
os.chdir('/dev')
os.close(os.open('vduse/control', os.O_RDWR | os.O_CLOEXEC))
try:
    os.open('/dev/vduse/nothing', os.O_RDWR)
except FileNotFoundError:
    pass
assert os.stat('/dev/null').st_rdev == os.makedev(1, 3)
assert open('/proc/self/status').read()
"""
#: Makes a device, set up, and answers nothing.
SILENT = """
import fcntl, os, signal
from vduse.control.abi import DevConfig, Ioctl, VqConfig
control = os.open('/dev/vduse/control', os.O_RDWR)
config = DevConfig(name='mute', vendor_id=0, device_id=2, features=1 << 32 | 1 << 33, vq_num=1,
                   vq_align=4096, config=bytes(60))
fcntl.ioctl(control, Ioctl.CREATE_DEV, config.pack())
device = os.open('/dev/vduse/mute', os.O_RDWR)
fcntl.ioctl(device, Ioctl.VQ_SETUP, VqConfig(0, 64).pack())
signal.pause()
"""
#: Opens without end; then as it was.
GREEDY = """
import os
fds = []
try:
    while True:
        fds.append(os.open('/dev/vduse/control', os.O_RDWR))
except OSError as error:
    assert error.errno in (23, 24), error
for fd in fds:
    os.close(fd)
os.close(os.open('/dev/vduse/control', os.O_RDWR))
"""
#: Has a child that goes its own way, and ends only when it is killed; says its pid.
DAEMONIZES = """
import os, signal

def until_gone(pid):
    try:
        while True:
            os.kill(pid, 0)
    except ProcessLookupError:
        pass

first = os.getpid()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        parent = os.getppid()
        os.kill(parent, signal.SIGKILL)
        until_gone(parent)
        until_gone(first)
        os.close(os.open('/dev/vduse/control', os.O_RDWR))
        print(os.getpid(), file=open('child', 'w'), flush=True)
        signal.pause()
    signal.pause()
"""


def python(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", source)


def storage(*names: str) -> list[str]:
    """Our own storage daemon, which thinks that the kernel is there; image NAME.img each."""
    argv = [*VDUSE, "storage-daemon"]
    for name in names:
        argv += ["--blockdev", f"driver=file,filename={name}.img,node-name={name}"]
        export = f"vduse-blk,id={name},node-name={name},name={name},writable=on,num-queues=2"
        argv += ["--export", export]
    return argv


class Folder:
    """Where a person is, and where temporary files go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tmp = path / "tmp"
        self.tmp.mkdir()

    def image(self, name: str, contents: bytes = b"") -> Path:
        path = self.path / f"{name}.img"
        path.write_bytes(contents)
        os.truncate(path, SIZE)
        return path

    @contextmanager
    def running(self, argv: Sequence[str], *options: str, **popen: Any) -> Iterator[RunChild]:
        """The command, and at the end that it has left nothing."""
        env = {"TMPDIR": str(self.tmp)}
        with vduse_run(*argv, options=options, env=env, cwd=self.path, **popen) as child:
            yield child
        assert list(self.tmp.iterdir()) == []

    def run(self, argv: Sequence[str], *options: str) -> tuple[int, list[dict[str, Any]]]:
        """To the end that comes by itself: exit code, and all facts."""
        done = subprocess.run(
            [*VDUSE, "run", "--json", *options, "--", *argv],
            cwd=self.path,
            env={**os.environ, "TMPDIR": str(self.tmp)},
            stdout=subprocess.PIPE,
            timeout=200,
            check=False,
        )
        assert list(self.tmp.iterdir()) == []
        return done.returncode, list(map(json.loads, done.stdout.splitlines()))

    def uri(self, name: str) -> str:
        return f"nbd+unix:///?socket={self.path / name}"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def gone(pid: int) -> bool:
    """Whether it has ended, or does so soon; whoever adopted it may not have waited for it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    watch = select.poll()
    watch.register(fd, select.POLLIN)
    try:
        return bool(watch.poll(60_000))
    finally:
        os.close(fd)


# --- what it serves --------------------------------------------------------------------------


@pytest.mark.needs("nbdcopy", "nbdinfo")
def test_newcomer_pastes_what_it_prints(folder: Folder) -> None:
    image = folder.image("disk0", os.urandom(1 << 20))
    process = subprocess.Popen(
        [*VDUSE, "run", "--nbd", "disk.sock", "--", *storage("disk0")],
        cwd=folder.path,
        env={**os.environ, "TMPDIR": str(folder.tmp)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        while "nbdinfo" not in text:
            line = process.stdout.readline()
            assert line, text
            text += line
        assert "disk0: block, 16 MiB, 2 virtqueues of 256, bound to virtio_vdpa\n" in text
        run("bash", "-c", text.splitlines()[-1])
        run("nbdcopy", folder.uri("disk.sock"), str(folder.path / "copy"))
        assert (folder.path / "copy").read_bytes() == image.read_bytes()
        process.terminate()
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert rest.endswith("ended: SIGTERM\n")
    assert list(folder.tmp.iterdir()) == []
    assert not (folder.path / "disk.sock").exists()


@pytest.mark.needs("nbdcopy")
def test_two_devices_and_two_doors(folder: Folder) -> None:
    for name in ("a", "b"):
        folder.image(name, name.encode() * 4096)
    with folder.running(storage("a", "b"), "--nbd", "b=b.sock", "--vhost-user", "v.sock") as child:
        b = child.wait_for("serving", name="b")
        a = next(f for f in child.facts if f["event"] == "serving" and f["name"] == "a")
        assert (a["driver"], a["socket"]) == ("vhost_vdpa", str(folder.path / "v.sock"))
        assert (b["driver"], b["uri"], b["size"]) == ("virtio_vdpa", folder.uri("b.sock"), SIZE)
        run("nbdcopy", b["uri"], str(folder.path / "copy"))
        assert child.stop() == 0
    assert (folder.path / "copy").read_bytes()[:4096] == b"b" * 4096
    assert not any((folder.path / name).exists() for name in ("b.sock", "v.sock"))


@pytest.mark.needs("nbdcopy")
def test_where_containers_refuse_pidfd_getfd(folder: Folder) -> None:
    """Docker's default profile, without CAP_SYS_PTRACE."""
    image = folder.image("disk0", os.urandom(SIZE))

    def confined() -> None:
        refuse({"pidfd_getfd": errno.EPERM, "io_uring_setup": errno.EPERM})

    with folder.running(storage("disk0"), "--nbd", "s", preexec_fn=confined) as child:
        child.wait_for("serving")
        run("nbdcopy", folder.uri("s"), str(folder.path / "copy"))
        assert child.stop() == 0
    assert (folder.path / "copy").read_bytes() == image.read_bytes()


def test_what_a_program_finds_at_its_nodes(folder: Folder) -> None:
    code, facts = folder.run(python(LOOKS))
    assert code == 0
    assert [fact["event"] for fact in facts] == ["started", "exited", "ending", "ended"]


def test_bus_by_qmp(folder: Folder) -> None:
    folder.image("disk0")
    dev = [*VDUSE, "dev"]

    def listed() -> dict[str, Any]:
        line = [*dev, "list", "--qmp", "bus.qmp", "--json"]
        found = subprocess.run(line, cwd=folder.path, capture_output=True, check=True)
        [device] = json.loads(found.stdout)["devices"]
        return dict(device)

    with folder.running(storage("disk0"), "--nbd", "s", "--qmp", "bus.qmp") as child:
        child.wait_for("serving")
        assert listed()["node"] == folder.uri("s")
        bind = [*dev, "bind", "disk0", "vhost_vdpa", "--qmp", "bus.qmp"]
        subprocess.run(bind, cwd=folder.path, check=True, stdout=subprocess.DEVNULL)
        assert (listed()["driver"], listed()["node"]) == ("vhost_vdpa", None)
        assert not (folder.path / "s").exists()
        assert child.stop() == 0


def test_sigusr1_counts(folder: Folder) -> None:
    folder.image("disk0")
    with folder.running(storage("disk0"), "--nbd", "s") as child:
        child.wait_for("serving")
        counted = child.count()
        assert counted["framework"]["disk0"]["messages_SET_STATUS"] >= 4
        assert counted["notifications"]["opens"] >= 2
        assert "disk0" in counted["statistics"]["disks"]
        assert child.stop() == 0


# --- how it ends -----------------------------------------------------------------------------


def test_exit_code_is_the_programs(folder: Folder) -> None:
    assert folder.run(("sh", "-c", "exit 3"))[0] == 3
    code, facts = folder.run(("sh", "-c", "kill -KILL $$"))
    assert code == 137
    assert [f["signal"] for f in facts if f["event"] == "exited"] == ["SIGKILL"]


@pytest.mark.needs("fio")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_in_mid_load_ends_everything_in_order(
    folder: Folder, signum: signal.Signals
) -> None:
    folder.image("disk0")
    with folder.running(storage("disk0"), "--nbd", "s") as child:
        child.wait_for("serving")
        load = subprocess.Popen(
            fio_command(folder.uri("s"), rw="randwrite", bs="4k", time_based=1, runtime=60),
            cwd=folder.path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not child.count()["framework"]["disk0"]["kicks"] > 100:
                pass
            child.process.send_signal(signum)
            child.wait_for("ended", reason=signum.name, failures=[])
            assert child.wait() == 0
        finally:
            load.kill()
            load.wait()


@pytest.mark.needs("nbdcopy")
def test_program_that_is_killed_takes_the_command_with_it(folder: Folder) -> None:
    folder.image("disk0")
    with folder.running(storage("disk0"), "--nbd", "s") as child:
        child.wait_for("serving")
        os.kill(child.daemon, signal.SIGKILL)
        assert child.wait() == 137
    assert not (folder.path / "s").exists()


@pytest.mark.needs("nbdcopy")
def test_restart_goes_on_under_a_live_driver(folder: Folder) -> None:
    image = folder.image("disk0", os.urandom(SIZE))
    with folder.running(storage("disk0"), "--nbd", "s", "--restart") as child:
        child.wait_for("serving")
        first = child.daemon
        os.kill(first, signal.SIGKILL)
        run("nbdcopy", folder.uri("s"), str(folder.path / "copy"))
        assert child.wait_for("started", starts=2)["pid"] != first
        assert child.stop() == 0
    assert (folder.path / "copy").read_bytes() == image.read_bytes()


@pytest.mark.needs("fio")
def test_killed_on_demand_and_written_down(folder: Folder) -> None:
    folder.image("disk0")
    options = ("--nbd", "s", "--fault", "kill:after=500,times=2", "--trace-json", "trace.json")
    with folder.running(storage("disk0"), *options) as child:
        child.wait_for("serving")
        found = fio_verified(folder.uri("s"), folder.path, bs="4k", size="2m")
        child.wait_for("started", starts=3)
        child.process.terminate()
        fault = child.wait_for("found", name="fault", ok=True)["facts"]["faults"]
        assert child.wait() == 0
    assert found.error == 0
    assert [(one["strikes"], one["failed"]) for one in fault] == [(2, False)]
    assert (folder.path / "trace.json").read_text().count('"open"') >= 3


def test_checked_for_ci(folder: Folder) -> None:
    """It ends by itself; our own daemon keeps the rules."""
    folder.image("disk0")
    code, facts = folder.run(storage("disk0"), "--check", "--junit", "report.xml")
    assert code == 0
    [found] = [fact for fact in facts if fact["event"] == "found"]
    assert (found["name"], found["ok"]) == ("check", True)
    suite = ElementTree.parse(folder.path / "report.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("name"), suite.get("failures")) == ("disk0", "0")


def test_second_signal_ends_it_at_once(folder: Folder) -> None:
    deaf = (
        "import signal; signal.signal(15, signal.SIG_IGN); print('{}', flush=True); signal.pause()"
    )
    with folder.running(python(deaf)) as child:
        child.wait_for("started")
        daemon = child.daemon
        child.process.send_signal(signal.SIGTERM)
        child.wait_for("ending", reason="SIGTERM")
        child.process.send_signal(signal.SIGINT)
        assert child.wait() == -signal.SIGINT
    assert gone(daemon)


def test_ctrl_c_while_nobody_reads_the_recording(folder: Folder) -> None:
    os.mkfifo(folder.path / "pipe")
    argv = [*VDUSE, "run", "--trace-json", "pipe", "--", "true"]
    with subprocess.Popen(argv, cwd=folder.path) as command:
        # Where the kernel keeps it: nothing else tells.
        while Path(f"/proc/{command.pid}/wchan").read_text() != "wait_for_partner":
            assert command.poll() is None
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 128 + signal.SIGINT


def test_all_that_it_has_forked_ends_with_it(folder: Folder) -> None:
    """The program has daemonized, and does not hear SIGTERM."""
    with folder.running(python(DAEMONIZES)) as child:
        child.wait_for("started")
        while not (folder.path / "child").exists() or not (folder.path / "child").read_text():
            child.count()
        pid = int((folder.path / "child").read_text())
        os.kill(pid, 0)
        child.process.terminate()
        child.wait_for("ended", exit_code=1)
        assert child.wait() == 1
    assert gone(pid)


# --- hostile and clumsy programs -------------------------------------------------------------


def test_program_that_never_answers_breaks_its_device(folder: Folder) -> None:
    code, facts = folder.run(python(SILENT), "--msg-timeout", "0.2")
    assert code == 1
    [broken] = [fact for fact in facts if fact["event"] == "broken"]
    assert broken["name"] == "mute"
    assert "no answer to SET_STATUS within 0.2 s" in broken["reason"]
    assert facts[-1]["failures"]


def test_program_that_never_answers_holds_up_no_end(folder: Folder) -> None:
    with folder.running(python(SILENT), "--msg-timeout", "0") as child:
        child.wait_for("started")
        while "mute" not in child.count()["framework"]:
            pass
        child.process.terminate()
        child.wait_for("ended", reason="SIGTERM", failures=[])
        assert child.wait() == 0


def test_fds_without_end(folder: Folder) -> None:
    assert folder.run(python(GREEDY))[0] == 0


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("run -- /no/such/program", "/no/such/program: no such program: check the path"),
        ("run -- nosuchprogram", "nosuchprogram: no such program on PATH"),
        ("run --nbd no/such/s -- true", "no/such/s: no such directory: make it"),
        ("run --qmp no/such/q -- true", "no/such/q: no such directory: make it"),
        ("run --fault nosuch -- true", "no fault 'nosuch'"),
        ("run --junit r.xml -- true", "--junit is for the report of --check"),
        ("run --check --junit no/r.xml -- true", "no/r.xml: cannot be written: No such file"),
        ("run --nbd plain -- true", "plain: is a file and no socket: name another path"),
        ("run --check --nbd s -- true", "vhost_vdpa is needed for what is asked for"),
    ],
)
def test_mistakes_of_the_person(person: Person, line: str, refusal: str) -> None:
    (person.cwd / "plain").touch()
    assert refusal in person.refused(line)


def test_below_another_listener_it_says_so(folder: Folder) -> None:
    inner = [*VDUSE, "run", "--", "true"]
    done = subprocess.run(
        [*VDUSE, "run", "--", *inner],
        cwd=folder.path,
        env={**os.environ, "TMPDIR": str(folder.tmp)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "seccomp listener above this process already" in done.stderr
