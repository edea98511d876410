"""Backend ``rbd`` under a whole device, on a librbd without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system import fake_rbd

CLUSTER = """
import ctypes, threading
from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend
from vduse.testing.harness import blk_stack

fake = ctypes.CDLL("librbd.so.1")

def create(path, size=1 << 20, features=4):
    fake.fake_create(path.encode(), ctypes.c_uint64(size), ctypes.c_uint64(features))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fake-rbd")
    fake_rbd.build(folder)
    return folder


def run(folder: Path, program: str) -> str:
    """What the program has printed; it must succeed."""
    done = fake_rbd.run(folder, CLUSTER + program)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_driver_reads_what_it_wrote(folder: Path) -> None:
    assert (
        run(
            folder,
            """
create("pool/disk")
with blk_stack(backend="rbd:pool/disk") as stack:
    disk = stack.disk
    disk.pwrite(bytes(range(256)) * 64, 4096)
    disk.flush()
    assert disk.pread(16384, 4096) == bytes(range(256)) * 64
    assert fake.fake_is_locked(b"pool/disk")
fake.fake_wait_open(b"pool/disk", ctypes.c_size_t(0))
print("done")
""",
        )
        == "done\n"
    )


def test_pages_of_our_own_go_to_the_library_as_they_are(folder: Path) -> None:
    assert (
        run(
            folder,
            """
create("pool/disk")
with blk_stack(backend="rbd:pool/disk", umem=True, bounce_size=4 << 20) as stack:
    for offset in range(0, 1 << 20, 1 << 16):
        stack.disk.pwrite(bytes([offset >> 16]) * 65536, offset)
    for offset in range(0, 1 << 20, 1 << 16):
        assert stack.disk.pread(65536, offset) == bytes([offset >> 16]) * 65536
print("done")
""",
        )
        == "done\n"
    )


def test_a_device_waits_for_its_own_cluster_only(folder: Path) -> None:
    assert (
        run(
            folder,
            """
create("one/disk")
create("two/disk")
with blk_stack(backend="rbd:one/disk") as one, blk_stack(backend="rbd:two/disk") as two:
    fake.fake_hold(b"one/disk", True)
    waits = threading.Thread(target=one.disk.pwrite, args=(b"x" * 512, 0))
    waits.start()
    fake.fake_wait_pending(b"one/disk", ctypes.c_size_t(1))
    two.disk.pwrite(b"y" * 512, 0)
    assert two.disk.pread(512, 0) == b"y" * 512
    assert waits.is_alive()
    fake.fake_hold(b"one/disk", False)
    waits.join()
    assert one.disk.pread(512, 0) == b"x" * 512
print("done")
""",
        )
        == "done\n"
    )


def test_a_reset_waits_for_no_answer(folder: Path) -> None:
    assert (
        run(
            folder,
            """
from vduse.testing.rawdriver import FREE, S_OK, T_OUT, RawDriver, header
from vduse.testing.rings import WRITE
create("pool/disk")
with blk_stack(backend="rbd:pool/disk", driver="vhost_vdpa") as stack:
    with RawDriver(stack.driver) as raw:
        assert raw.start()
        fake.fake_hold(b"pool/disk", True)
        message = header(T_OUT, 0) + b"x" * 512
        raw.memory.write(FREE, message)
        raw.submit([(raw.at(FREE), len(message), 0), (raw.at(FREE + len(message)), 1, WRITE)])
        raw.kick()
        fake.fake_wait_pending(b"pool/disk", ctypes.c_size_t(1))
        raw.reset()
    # Answered while the cluster still does not.
    fake.fake_wait_pending(b"pool/disk", ctypes.c_size_t(1))
    fake.fake_hold(b"pool/disk", False)
    with RawDriver(stack.driver) as raw:
        assert raw.start()
        assert raw.request(T_OUT, 0, b"y" * 512)[0] == S_OK
print("done")
""",
        )
        == "done\n"
    )


def test_a_resize_reaches_the_driver(folder: Path) -> None:
    assert (
        run(
            folder,
            """
create("pool/disk")
told = threading.Event()
with blk_stack(backend="rbd:pool/disk") as stack:
    fake.fake_resize(b"pool/disk", ctypes.c_uint64(2 << 20))
    while stack.disk.size != 2 << 20:
        told.wait(0.01)
    stack.disk.pwrite(b"x" * 512, (2 << 20) - 512)
print("done")
""",
        )
        == "done\n"
    )


@pytest.mark.parametrize("name", fake_rbd.NAMES)
def test_a_library_that_cannot_be_loaded_is_named_with_its_package(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("no library")
    program = """
from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend
try:
    open_backend("rbd:pool/disk")
except BackendError as error:
    print(error)
"""
    done = fake_rbd.run(tmp_path, program)
    package = {"librados.so.2": "librados2", "librbd.so.1": "librbd1"}[name]
    assert done.stdout.startswith(f"{name}: "), done.stderr
    assert done.stdout.endswith(f"Debian's package {package} has it: apt install {package}\n")
