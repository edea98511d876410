"""qcow2 images in other nodes, and on other disks: QEMU's graph of nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.nbd_servers import nbdkit
from tests.system.test_qcow2 import MIB, checked, daemon, export, in_file, qemu_img
from vduse import _native
from vduse.backends.spec import open_backend
from vduse.daemon.qmp.arguments import convert
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.daemon import Daemon, OptionError
from vduse.daemon.storage.models import NodeName
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.framework import Framework
from vduse.testing.harness import blk_stack


@pytest.fixture
def framework() -> Iterator[Framework]:
    with Framework() as framework:
        yield framework


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "16M")
    return path


def in_node(path: Path) -> list[dict[str, object]]:
    return [{**in_file(path), "node-name": "store"}]


def in_throttled_node(path: Path) -> list[dict[str, object]]:
    node = {"driver": "throttle", "node-name": "store", "throttle-group": "g"}
    return [{"qom-type": "throttle-group", "id": "g"}, {**node, "file": in_file(path)}]


def in_part_of_a_file(path: Path) -> list[dict[str, object]]:
    """All of the image that there will be fits into it."""
    whole = path.with_suffix(".img")
    whole.write_bytes(b"b" * MIB + path.read_bytes().ljust(20 * MIB, b"\0") + b"b" * MIB)
    node = {"driver": "raw", "node-name": "store", "offset": MIB, "size": 20 * MIB}
    return [{**node, "file": in_file(whole)}]


@pytest.mark.parametrize("nodes", [in_node, in_throttled_node, in_part_of_a_file])
def test_an_image_lies_in_another_node(
    framework: Framework, image: Path, nodes: Callable[[Path], list[dict[str, object]]]
) -> None:
    given = nodes(image)
    qcow2 = {"driver": "qcow2", "node-name": "a", "file": "store"}
    with daemon(framework, *given, qcow2, export("a")) as served:
        framework.dev_add("d")
        disk = framework.disk("d")
        for at in range(0, 8 * MIB, 65536 + 512):
            disk.pwrite(at.to_bytes(8, "little") * 512, at // 4096 * 4096)
        expected = disk.pread(16 * MIB, 0)
        framework.dev_del("d")
        taken = {"driver": "qcow2", "node-name": "b", "file": "store"}
        with pytest.raises(QmpError, match="used as 'a's child"):
            add(served, taken)
    if nodes is in_part_of_a_file:
        whole = image.with_suffix(".img").read_bytes()
        assert whole[:MIB] == whole[-MIB:] == b"b" * MIB
        image.write_bytes(whole[MIB:-MIB])
    assert checked(image) == expected


def add(served: Daemon, node: dict[str, object]) -> None:
    """By QMP's blockdev-add."""
    served.store.blockdev_add(convert(node, Blockdev))


def test_a_part_of_a_file_that_is_full_fails_writes(framework: Framework, image: Path) -> None:
    image.write_bytes(image.read_bytes().ljust(MIB, b"\0"))
    part = {"driver": "raw", "size": MIB, "file": in_file(image)}
    qcow2 = {"driver": "qcow2", "node-name": "a", "file": part}
    with daemon(framework, qcow2, export("a")):
        framework.dev_add("d")
        disk = framework.disk("d")
        disk.pwrite(b"x" * 4096, 0)
        with pytest.raises(OSError, match="error"):
            disk.pwrite(b"y" * 4 * MIB, 4 * MIB)
        assert disk.pread(4096, 0) == b"x" * 4096
        framework.dev_del("d")
    assert image.stat().st_size == MIB
    assert checked(image)[:4096] == b"x" * 4096


def test_an_image_lies_on_the_disk_that_it_is_given(
    framework: Framework, image: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "16M")
    with blk_stack(backend=f"qcow2:{base}") as stack:
        stack.disk.pwrite(b"b" * 8192, 4096)
    below = {"driver": "qcow2", "node-name": "base", "read-only": True, "file": in_file(base)}
    above = {"driver": "qcow2", "node-name": "a", "file": in_file(image), "backing": "base"}
    with daemon(framework, below, above, export("a")) as served:
        framework.dev_add("d")
        disk = framework.disk("d")
        disk.pwrite(b"a" * 512, 4096)
        assert disk.pread(8192, 4096) == b"a" * 512 + b"b" * (8192 - 512)
        with pytest.raises(QmpError, match="in use"):
            served.store.blockdev_del(NodeName(node_name="base"))
        framework.dev_del("d")
    qemu_img("rebase", "-u", "-b", base, "-F", "qcow2", image)
    assert checked(image)[4096:12288] == b"a" * 512 + b"b" * (8192 - 512)


def test_what_lies_beneath_an_image_ends_after_it(
    framework: Framework, image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    base.write_bytes(b"b" * MIB)
    below = {**in_file(base), "node-name": "base", "read-only": True}
    above = {"driver": "qcow2", "node-name": "a", "file": "store", "backing": "base"}
    with daemon(framework, below, *in_node(image), above, export("a")):
        pass
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_null_beneath_hides_what_the_image_names(framework: Framework, tmp_path: Path) -> None:
    base, image = tmp_path / "base", tmp_path / "image"
    base.write_bytes(b"b" * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image)
    for backing, expected in (({}, b"b"), ({"backing": None}, b"\0"), ({"backing": ""}, b"\0")):
        node = {"driver": "qcow2", "node-name": "a", "file": in_file(image), **backing}
        with daemon(framework, node, export("a")):
            framework.dev_add("d")
            assert framework.disk("d").pread(512, 0) == expected * 512
            framework.dev_del("d")
    nodes = [*in_node(image), {"driver": "qcow2", "node-name": "a", "file": "store"}]
    with (
        pytest.raises(OptionError, match="as its backing file: give a node, or null, as backing"),
        daemon(framework, *nodes),
    ):
        pass


@pytest.mark.needs("nbdkit")
def test_an_image_lies_in_an_nbd_export(image: Path, tmp_path: Path) -> None:
    image.write_bytes(image.read_bytes().ljust(24 * MIB, b"\0"))
    pool = _native.Pool(1)
    with nbdkit(tmp_path, "file", str(image)) as server:
        below = open_backend(server.spec)
        layer = _native.qcow2_layer(below, pool, name="store")
        with closing(pool), closing(layer), blk_stack(backend=layer) as stack:
            for at in range(0, 8 * MIB, 65536 + 512):
                stack.disk.pwrite(at.to_bytes(8, "little") * 512, at // 4096 * 4096)
            expected = stack.disk.pread(16 * MIB, 0)
    assert checked(image) == expected
