"""A clumsy person at the command: one line on stderr, exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system import seccomp

SIZE = 64 << 20


class Person:
    """Types ``vduse`` lines in an empty folder, with temporary files in another."""

    def __init__(self, folder: Path) -> None:
        self.cwd = folder / "cwd"
        self.tmp = folder / "tmp"
        self.cwd.mkdir()
        self.tmp.mkdir()

    def types(
        self, line: str, before: Callable[[], None] | None = None, **streams: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command line; ``before`` runs in the new process."""
        return subprocess.run(
            [sys.executable, "-m", "vduse.daemon", *line.split(" ")],
            cwd=self.cwd,
            env={**os.environ, "TMPDIR": str(self.tmp)},
            text=True,
            preexec_fn=before,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        )

    def refused(self, line: str, before: Callable[[], None] | None = None) -> str:
        """The line of a refusal."""
        done = self.types(line, before)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("vduse: error: "), done.stderr
        assert list(self.tmp.iterdir()) == []
        return last.removeprefix("vduse: error: ")


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


def limit(what: int, value: int) -> Callable[[], None]:
    """Sets a resource limit in the new process."""
    return lambda: resource.setrlimit(what, (value, value))


def test_nothing_is_kept_of_a_demo_that_fails(person: Person) -> None:
    person.refused("demo no/disk.img --keep")


def test_image_without_a_name(person: Person) -> None:
    assert person.refused("demo ") == "the image has no name: name a file, or leave it out"


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null", "fifo"])
def test_image_that_is_no_disk(person: Person, name: str) -> None:
    os.mkfifo(person.cwd / "fifo")
    line = person.refused(f"demo {name}")
    assert line == f"{name}: neither a file nor a block device: name a disk image"


def test_image_that_is_a_circle_of_links(person: Person) -> None:
    (person.cwd / "a").symlink_to("a")
    line = person.refused("demo a")
    assert line == "a: its symbolic links go round in a circle: check the path"


def test_size_that_no_file_can_have(person: Person) -> None:
    line = person.refused("demo --size 8388608T")
    assert line == "--size 8388608 TiB is too large for a file: use 8388607T or less"


def test_image_smaller_than_a_block_of_the_load(person: Person) -> None:
    (person.cwd / "tiny.img").write_bytes(b"x" * 512)
    assert person.types("demo tiny.img").returncode == 0


def test_a_file_size_limit(person: Person) -> None:
    """Memory files count, too."""
    line = person.refused("demo --size 64M", limit(resource.RLIMIT_FSIZE, 80 << 20))
    assert line.endswith("raise the limit (ulimit -f)")


@pytest.mark.parametrize("files", [12, 20, 32])
def test_few_open_files(person: Person, files: int) -> None:
    line = person.refused("demo --size 64M --queues 4", limit(resource.RLIMIT_NOFILE, files))
    assert line == f"{files} open files are allowed, 100 are needed: ulimit -n 100"


def test_open_files_that_suffice(person: Person) -> None:
    done = person.types("demo --size 64M --queues 4", limit(resource.RLIMIT_NOFILE, 100))
    assert done.returncode == 0, done.stderr


def test_doctor_sees_that_the_open_files_do_not_suffice(person: Person) -> None:
    done = person.types("doctor", limit(resource.RLIMIT_NOFILE, 20))
    assert done.returncode == 1
    assert "missing  open files       limit 20: not enough for one device" in done.stdout


def test_little_memory(person: Person) -> None:
    line = person.refused("demo --size 64M", limit(resource.RLIMIT_AS, 220 << 20))
    assert "ulimit" in line


# --- standard streams ---------------------------------------------------------------------


@pytest.mark.parametrize("line", ["--help", "doctor", "doctor --json", "demo --size 64M --json"])
def test_output_that_cannot_be_written(person: Person, line: str) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = person.types(line, stdout=full)
    os.close(full)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "vduse: error: the output cannot be written: No space left on device"
    )


@pytest.mark.parametrize("fds", [[0], [1], [2], [0, 1, 2]])
@pytest.mark.parametrize("line", ["--help", "doctor", "demo --size 64M"])
def test_closed_streams(person: Person, line: str, fds: list[int]) -> None:
    def close() -> None:
        for fd in fds:
            os.close(fd)

    done = person.types(line, close)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


# --- a system that forbids ----------------------------------------------------------------


@pytest.mark.parametrize("call", ["io_uring_setup", "io_uring_enter", "io_uring_register"])
def test_io_uring_forbidden_in_part(person: Person, call: str) -> None:
    done = person.types("demo --size 64M --json", lambda: seccomp.refuse({call: errno.EPERM}))
    assert done.returncode == 0, done.stderr
    assert '"engine": "threads"' in done.stdout


@pytest.mark.parametrize("call", ["memfd_create", "socketpair"])
def test_a_call_forbidden_that_the_framework_needs(person: Person, call: str) -> None:
    line = person.refused("demo --size 64M", lambda: seccomp.refuse({call: errno.EPERM}))
    assert line.endswith("vduse doctor says what this host lacks")


# --- signals when no command runs -----------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupt_outside_of_the_command(when: str) -> None:
    """While modules are imported, and while the interpreter ends."""
    interrupt = "import signal; signal.raise_signal(signal.SIGINT)"
    begin = (
        "from vduse.daemon import __main__ as program, main; import sys; sys.argv[1:] = ['doctor']"
    )
    body = {
        "before": f"def stop(): {interrupt}\nmain.main = stop\nprogram.main()",
        "after": f"program.main(); {interrupt}",
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{begin}\n{body[when]}"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
