"""qcow2 images and windows through the whole stack, and QEMU's opinion of them afterwards."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend
from vduse.bus import virtio_blk
from vduse.channel.embedded import EmbeddedControl
from vduse.daemon.storage.daemon import Daemon, OptionError
from vduse.daemon.storage.models import QueryNodes, Resize
from vduse.framework import Framework
from vduse.testing.harness import blk_stack

MIB = 1 << 20


def qemu_img(*words: str | Path) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, words)], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "16M")
    return path


def checked(image: Path) -> bytes:
    """What is in it, once QEMU has found no mistake."""
    qemu_img("check", image)
    raw = image.with_suffix(".raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    return raw.read_bytes()


@pytest.mark.parametrize("direct", [False, True])
def test_what_a_disk_writes_qemu_reads(image: Path, direct: bool) -> None:
    with blk_stack(backend=f"qcow2:{image}", direct=direct, queues=2) as stack:
        assert stack.disk.size == 16 * MIB
        for at in range(0, 4 * MIB, 65536 + 512):
            stack.disk.pwrite(at.to_bytes(8, "little") * 512, at // 4096 * 4096)
        stack.disk.flush()
        expected = stack.disk.pread(16 * MIB, 0)
    assert checked(image) == expected


def test_a_pool_is_in_use_until_its_images_are_closed(image: Path) -> None:
    pool = _native.Pool(1)
    backend = open_backend(f"qcow2:{image}", pool=lambda: pool)
    with pytest.raises(OSError, match="in use"):
        pool.close()
    backend.close()
    pool.close()


def test_mistakes_say_what_to_do(tmp_path: Path, pool: _native.Pool) -> None:
    def refusal(spec: str, size: int | None = None) -> str:
        with pytest.raises(BackendError) as refused:
            open_backend(spec, size=size, pool=lambda: pool)
        return str(refused.value).replace(f"{tmp_path}/", "")

    assert refusal("qcow2:") == "qcow2: needs a path, as in qcow2:disk.qcow2"
    assert refusal("qcow2:a", size=MIB) == "qcow2:a: an image has its own size"
    assert refusal(f"qcow2:{tmp_path}/nowhere").startswith("nowhere: No such file or directory")
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(MIB))
    assert refusal(f"qcow2:{raw}") == "raw: no qcow2 image"


@pytest.fixture
def pool() -> Iterator[_native.Pool]:
    pool = _native.Pool(1)
    yield pool
    pool.close()


@pytest.fixture
def framework() -> Iterator[Framework]:
    with Framework() as framework:
        yield framework


@contextmanager
def daemon(framework: Framework, *options: Mapping[str, object]) -> Iterator[Daemon]:
    """The storage daemon with these nodes, and exports of those that have an id."""
    control = EmbeddedControl(framework.control())
    kinds = {"qom-type": "object", "id": "export"}

    def kind(given: Mapping[str, object]) -> str:
        return next((kinds[key] for key in kinds if key in given), "blockdev")

    named = [(kind(it), json.dumps(it)) for it in options]
    daemon = Daemon(control, named)
    try:
        yield daemon
    finally:
        daemon.close()
        control.close()


def export(node: str) -> dict[str, object]:
    return {"type": "vduse-blk", "id": "e", "node-name": node, "name": "d", "writable": True}


def in_file(path: Path) -> dict[str, object]:
    return {"driver": "file", "filename": str(path)}


def test_an_image_is_a_node_that_is_resized_live(
    framework: Framework, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threading.Event()
    monkeypatch.setattr(virtio_blk.log, "info", lambda *_: seen.set())
    node = {"driver": "qcow2", "node-name": "a", "file": in_file(image)}
    with daemon(framework, node, export("a")) as served:
        framework.dev_add("d")
        disk = framework.disk("d")
        disk.pwrite(b"x" * 4096, 16 * MIB - 4096)
        served.store.block_resize(Resize(node_name="a", size=20 * MIB))
        [shown] = served.store.query_named_block_nodes(QueryNodes())
        assert (shown.drv, shown.image.virtual_size) == ("qcow2", 20 * MIB)
        assert seen.wait(60)
        disk.pwrite(b"y" * 4096, 20 * MIB - 4096)
        framework.dev_del("d")
    content = checked(image)
    assert len(content) == 20 * MIB
    assert content[16 * MIB - 4096 : 16 * MIB + 4096] == b"x" * 4096 + bytes(4096)
    assert content[-4096:] == b"y" * 4096


def test_a_raw_node_is_a_part_of_its_file(framework: Framework, tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"b" * MIB)
    node: dict[str, object] = {
        "driver": "raw",
        "node-name": "a",
        "file": in_file(path),
        "offset": 65536,
        "size": 4096,
    }
    with daemon(framework, node, export("a")):
        framework.dev_add("d")
        disk = framework.disk("d")
        assert disk.size == 4096
        disk.pwrite(b"x" * 4096, 0)
        framework.dev_del("d")
    assert path.read_bytes() == b"b" * 65536 + b"x" * 4096 + b"b" * (MIB - 65536 - 4096)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda it: it.update(offset=MIB, size=512), "do not lie within the 1048576 there are"),
        (lambda it: it.update(offset=100), "an offset of 100 bytes: no multiple of 512"),
        (lambda it: it.update(size=-1), "'size' expects a number from 0 to 2^63 - 1"),
    ],
)
def test_a_part_that_is_not_there_is_refused(
    framework: Framework, tmp_path: Path, change: Callable[[dict[str, object]], None], why: str
) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(MIB))
    node: dict[str, object] = {"driver": "raw", "node-name": "a", "file": in_file(path)}
    change(node)
    with pytest.raises(OptionError, match=why.replace("^", r"\^")), daemon(framework, node):
        pass
