"""Clumsy programs: each mistake is an exception that names it; nothing hangs, crashes or stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend
from vduse.channel.embedded import EmbeddedControl
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework
from vduse.testing.harness import BlkStack, blk_stack

SIZE = 4 << 20


@pytest.fixture
def stack() -> Iterator[BlkStack]:
    with blk_stack(size=SIZE) as stack:
        yield stack


def program(body: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A program with a disk, on which ``body`` goes on."""
    begin = """
        import os, sys, threading
        from vduse.backends.spec import open_backend
        from vduse.channel.embedded import EmbeddedControl
        from vduse.devices.blk import BlkDevice
        from vduse.framework import Framework
        backend = open_backend("memory", size=4 << 20)
        device = BlkDevice("disk0", backend, queues=2)
        framework = Framework()
        control = EmbeddedControl(framework.control())
        device.start(control)
        framework.dev_add("disk0")
        disk = framework.disk("disk0")
        disk.pwrite(b"x" * 512, 0)
    """
    text = textwrap.dedent(begin) + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", text], cwd=cwd, capture_output=True, text=True)


# --- arguments that cannot be ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"name": ""}, "name: '' is not 1 to 255 bytes long"),
        ({"name": "x" * 256}, f"name: '{'x' * 256}' is not 1 to 255 bytes long"),
        ({"name": ".."}, "name: '..' cannot be a file's name below /dev/vduse"),
        ({"name": "a/b"}, "name: 'a/b' cannot be a file's name below /dev/vduse"),
        ({"name": "a\0b"}, "name: 'a\\x00b' cannot be a file's name below /dev/vduse"),
        ({"serial": "\xe9"}, "serial: '\xe9' is not at most 20 ASCII characters"),
        ({"api_version": 2}, "api_version: 2 is neither 0 nor 1"),
        ({"drain_timeout": -1.0}, "drain_timeout: -1.0 is negative"),
    ],
)
def test_block_device_that_cannot_be(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as refused:
        BlkDevice(**{"name": "d", "backend": _native.Backend.null(SIZE), **arguments})
    assert str(refused.value) == line


@pytest.mark.parametrize(
    "arguments",
    [{"bounce_size": 0}, {"bounce_size": 1 << 31}, {"msg_timeout": -1}, {"msg_timeout": 1 << 32}],
)
def test_framework_that_cannot_be(arguments: dict[str, Any]) -> None:
    [name] = arguments
    with pytest.raises(ValueError, match=f"{name}: "):
        Framework(**arguments)


def test_listening_nowhere() -> None:
    with Framework() as framework, pytest.raises(ValueError, match="needs a path"):
        framework.listen("")


def test_memory_beyond_all_files() -> None:
    with pytest.raises(BackendError) as refused:
        open_backend("memory", size=1 << 64)
    assert str(refused.value) == (
        "memory: 18446744073709551616 bytes are too many; at most 9223372036854775296"
    )


def test_system_errors_are_told_once(tmp_path: Path) -> None:
    """Python shows the errno: Rust's "(os error 40)" is left out."""
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(OSError) as refused:
        _native.Backend.file(str(tmp_path / "a"))
    assert refused.value.errno == errno.ELOOP
    assert "os error" not in str(refused.value)


@pytest.mark.parametrize(("length", "offset"), [(1, 0), (512, SIZE), (1024, SIZE - 512)])
def test_bytes_that_are_not_on_the_disk(stack: BlkStack, length: int, offset: int) -> None:
    with pytest.raises(OSError) as refused:
        stack.disk.pread(length, offset)
    assert refused.value.errno == errno.EINVAL
    assert refused.value.strerror == f"no whole sectors, or past the disk's end at {SIZE} bytes"


def test_api_version_that_the_framework_does_not_know() -> None:
    device = BlkDevice("d", _native.Backend.null(SIZE), api_version=1)
    with Framework("6.12") as framework:
        control = EmbeddedControl(framework.control())
        with pytest.raises(OSError, match="does not know API version 1"):
            device.start(control)
        control.close()


def test_device_that_is_broken_for_good() -> None:
    device = BlkDevice("d", _native.Backend.null(SIZE))
    with Framework() as framework:
        control = EmbeddedControl(framework.control())
        device.start(control)
        device.close()
        framework.device("d").messages.break_device("a test")
        with pytest.raises(PermissionError, match="device d is broken for good: destroy it"):
            device.start(control)
        control.close()


# --- closed in the wrong order ------------------------------------------------------------


def test_backend_and_pool_in_use_are_not_closed(tmp_path: Path) -> None:
    """A closed image would be unlocked under a device that writes it."""
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, SIZE)
    backend, pool = open_backend(str(image)), _native.Pool(1)
    device = BlkDevice("d", backend, pool=pool)
    with Framework() as framework:
        control = EmbeddedControl(framework.control())
        device.start(control)
        framework.dev_add("d")
        for thing in (backend, pool):
            with pytest.raises(OSError, match="in use: close the devices on it first") as refused:
                thing.close()
            assert refused.value.errno == errno.EBUSY
        assert framework.disk("d").pread(512, 0) == bytes(512)
        framework.dev_del("d")
        device.close()
        control.close()
    backend.close()
    pool.close()


def test_framework_closed_first(tmp_path: Path) -> None:
    done = program("framework.close(); device.close(); control.close(); backend.close()", tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


# --- ends of the process ------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "",
        "sys.exit(0)",
        "disk.submit([('read', 0, bytearray(1 << 20)) for _ in range(8)])",
        """
        def reads():
            while True:
                disk.pread(4096, 0)
        for _ in range(4):
            threading.Thread(target=reads, daemon=True).start()
        """,
    ],
    ids=["nothing closed", "exit", "requests under way", "threads that read"],
)
def test_process_that_closes_nothing_ends(body: str, tmp_path: Path) -> None:
    done = program(body, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_file_that_is_not_closed_does_not_panic_at_the_end(tmp_path: Path) -> None:
    """Its flush comes when nobody answers for the device any more."""
    done = program("file = disk.open(); file.write(b'abc')", tmp_path)
    assert done.returncode == 0
    assert "panicked" not in done.stderr


def test_child_of_a_fork_is_refused(tmp_path: Path) -> None:
    done = program(
        """
        def tried(what):
            try:
                what()
            except (RuntimeError, OSError) as error:
                return str(error)
        calls = (
            lambda: disk.pread(512, 0), lambda: disk.flush(), lambda: disk.size,
            lambda: backend.flush(), lambda: backend.close(), lambda: device.close(),
            lambda: device.resize(), lambda: device.stats(), lambda: framework.dev_del("disk0"),
            lambda: framework.control(), lambda: framework.bus.unbind("disk0"),
            lambda: control.open("disk0"),
        )
        if (pid := os.fork()) == 0:
            refused = [tried(call) for call in calls]
            os._exit(all(e and ("fork" in e or "parent process" in e) for e in refused) + 10)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11
        assert disk.pread(512, 0) == b"x" * 512
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_many_threads_add_and_remove_one_device(stack: BlkStack) -> None:
    name = stack.spec.name
    stack.framework.dev_del(name)
    wrong: list[Exception] = []

    def worker() -> None:
        for _ in range(20):
            for call in (stack.framework.dev_add, stack.framework.dev_del):
                try:
                    call(name)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.EINVAL, errno.ENODEV):
                        wrong.append(error)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with suppress(OSError):
        stack.framework.dev_add(name)
    assert stack.framework.disk(name).pread(512, 0) == bytes(512)
