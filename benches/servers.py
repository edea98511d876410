"""The NBD servers that are compared: each as its own documentation starts it, with all defaults,
one disk of the same size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from vduse.testing.nbd import NbdChild, blk_server, other_server

#: Bytes of every disk.
SIZE = 256 << 20

Server = AbstractContextManager[NbdChild]


@contextmanager
def _qemu_file() -> Iterator[NbdChild]:
    """A raw file on tmpfs."""
    with NamedTemporaryFile(dir="/dev/shm", prefix="vduse-bench-") as image:
        os.truncate(image.name, SIZE)
        with other_server(["qemu-nbd", "-t", "-f", "raw", image.name]) as server:
            yield server


def _qemu_null() -> Server:
    """Reads send data, as everybody's here: with ``read-zeroes=on`` replies would be holes."""
    options = f"driver=null-co,size={SIZE},read-zeroes=off"
    return other_server(["qemu-nbd", "-t", "--image-opts", options])


def _nbdkit(*plugin: str) -> Server:
    return other_server(["nbdkit", "-f", *plugin])


def _nbdkit_python(*parameters: str) -> Server:
    plugin = Path(__file__).with_name("nbdkit_ram_disk.py")
    return _nbdkit("python", str(plugin), f"size={SIZE}", *parameters)


OURS: dict[str, Callable[[], Server]] = {
    "vduse memory": lambda: blk_server("memory", "--size", f"{SIZE}"),
    "vduse null": lambda: blk_server("null", "--size", f"{SIZE}"),
}
PEERS: dict[str, Callable[[], Server]] = {
    "nbdkit memory": lambda: _nbdkit("memory", f"{SIZE}"),
    "nbdkit null": lambda: _nbdkit("null", f"{SIZE}"),
    "qemu-nbd tmpfs": _qemu_file,
    "qemu-nbd null-co": _qemu_null,
}
PYTHON_PEERS: dict[str, Callable[[], Server]] = {
    "nbdkit python": _nbdkit_python,
    "nbdkit python, parallel": lambda: _nbdkit_python("parallel=1"),
}
