"""qemu-storage-daemon's VDUSE export under `vduse run`: NBD clients, as root and as nobody."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest

from tests.system.as_nobody import as_nobody, capabilities, give
from tests.system.nbd_clients import JOBS, fio_verified, run_json
from tests.system.qemu_daemon import MIB, PROGRAM, make_image, on_file, on_null
from vduse.testing.run import VDUSE, vduse_run

pytestmark = pytest.mark.needs("qemu-storage-daemon", "fio")

SIZE = 64 * MIB
QUEUES = 4
USERS = ("root", "nobody") if os.geteuid() == 0 else ("nobody",)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Everybody may go there, the ordinary user may write."""
    with TemporaryDirectory(prefix="vduse-qemu-") as path:
        os.chmod(path, 0o755)
        yield give(Path(path))


@pytest.fixture(params=USERS)
def command(request: pytest.FixtureRequest) -> Iterator[Sequence[str]]:
    """`vduse`, as root and as an ordinary user."""
    with nullcontext(VDUSE) if request.param == "root" else as_nobody() as command:
        yield command


def uri(socket: Path) -> str:
    return f"nbd+unix:///?socket={quote(str(socket))}"


def test_what_fio_wrote_it_reads_back(command: Sequence[str], folder: Path) -> None:
    """Depth 32 by each of four jobs, on four virtqueues; and nothing is left behind."""
    image = make_image(folder / "disk.img", SIZE)
    os.chmod(image, 0o666)
    temporary = folder / "tmp"
    temporary.mkdir()
    give(temporary)
    socket = folder / "nbd.sock"
    with vduse_run(
        *(PROGRAM, *on_file(image, queues=QUEUES)),
        options=["--nbd", str(socket)],
        command=command,
        env={"TMPDIR": str(temporary)},
    ) as run:
        assert run.wait_for("serving")["uri"] == uri(socket)
        if command is not VDUSE:
            for pid in (run.process.pid, run.daemon):
                assert capabilities(pid) == {"0" * 16}
        found = fio_verified(uri(socket), folder, bs="4k", size="8m")
        assert found.error == 0
        assert found.written_bytes == found.read_bytes == JOBS * 8 * MIB
        daemon = run.daemon
        assert run.stop() == 0
    assert not os.path.exists(f"/proc/{daemon}")
    assert not socket.exists()
    assert list(temporary.iterdir()) == []
    assert any(Path(image).read_bytes()[: 8 * MIB])


def test_a_disk_that_forgets(command: Sequence[str], folder: Path) -> None:
    """All requests are answered, and what is read is not what was written: fio would find out."""
    socket = folder / "nbd.sock"
    with vduse_run(
        *(PROGRAM, *on_null(SIZE, queues=QUEUES)),
        options=["--nbd", str(socket)],
        command=command,
    ) as run:
        run.wait_for("serving")
        assert fio_verified(uri(socket), folder, bs="4k", size="1m").error == errno.EILSEQ
        found = fio_verified(uri(socket), folder, bs="4k", size="8m", do_verify=0)
        assert (found.error, found.written_bytes) == (0, JOBS * 8 * MIB)
        assert run.stop() == 0


def test_two_devices_of_one_daemon(folder: Path) -> None:
    """A door each."""
    sizes = {"a": SIZE, "b": 2 * SIZE}
    arguments, options = [], []
    for name, size in sizes.items():
        arguments += on_file(make_image(folder / f"{name}.img", size), name=name)
        options += ["--nbd", f"{name}={folder / name}"]
    with vduse_run(PROGRAM, *arguments, options=options) as run:
        for name in sizes:
            run.wait_for("serving", name=name)
        found = {
            name: run_json("nbdinfo", "--json", uri(folder / name))["exports"][0]["export-size"]
            for name in sizes
        }
        assert found == sizes
        for name in sizes:
            assert fio_verified(uri(folder / name), folder, bs="4k", size="2m").error == 0
        assert run.stop() == 0


def test_two_daemons_with_devices_of_the_same_name(folder: Path) -> None:
    """Each has a /dev/vduse of its own; one that dies does the other no harm."""
    sockets = [folder / "first.sock", folder / "second.sock"]
    images = [make_image(folder / f"{socket.stem}.img", SIZE) for socket in sockets]
    runs = [
        vduse_run(PROGRAM, *on_file(image), options=["--nbd", str(socket)])
        for image, socket in zip(images, sockets, strict=True)
    ]
    with runs[0] as first, runs[1] as second:
        for run in (first, second):
            run.wait_for("serving", name="disk0")
        os.kill(first.daemon, 9)
        assert first.wait() == 128 + 9
        assert fio_verified(uri(sockets[1]), folder, bs="4k", size="2m").error == 0
        assert second.stop() == 0
