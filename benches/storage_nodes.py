"""What the storage daemons serve when they are compared: the same data for either."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from fio import fill
from tests.ceph.cluster import POOL, Cluster
from vhost_user_servers import CACHE, SIZE, image

from vduse.testing.nbd import other_server

#: ``--blockdev`` of either daemon, by its name, without a node-name.
Blockdevs = Mapping[str, str]

_TMPFS = "/dev/shm"
#: QEMU's default, a pool of threads, is slower.
_CACHED = "aio=io_uring"
_DIRECT = "aio=io_uring,cache.direct=on"


def _copies(path: str) -> dict[str, str]:
    """A file has one writer: the file itself and a copy, on the disk when this returns."""
    copy = f"{path}.copy"
    shutil.copyfile(path, copy)
    with open(copy, "rb") as file:
        os.fsync(file.fileno())
    return {"vduse": path, "qemu": copy}


@contextmanager
def _file(folder: str, options: str) -> Iterator[Blockdevs]:
    with image(folder) as raw:
        yield {
            name: f"driver=file,filename={path},{options}" for name, path in _copies(raw).items()
        }


@contextmanager
def _qcow2(folder: str, options: str) -> Iterator[Blockdevs]:
    """All clusters are allocated."""
    nested = ",".join(f"file.{option}" for option in options.split(","))
    with image(folder) as raw:
        path = f"{raw}.qcow2"
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path]
        subprocess.run(convert, check=True)
        os.unlink(raw)
        yield {
            name: f"driver=qcow2,file.driver=file,file.filename={path},{nested}"
            for name, path in _copies(path).items()
        }


@contextmanager
def _nbd() -> Iterator[Blockdevs]:
    """One nbdkit for both."""
    with other_server(["nbdkit", "-f", "memory", f"{SIZE}"]) as server:
        fill(server)
        blockdev = f"driver=nbd,server.type=unix,server.path={server.socket}"
        yield {"vduse": blockdev, "qemu": blockdev}


@contextmanager
def _rbd() -> Iterator[Blockdevs]:
    """An image each, of one cluster."""
    with TemporaryDirectory(prefix="vduse-bench-") as folder, Cluster(Path(folder)) as cluster:
        images = ("vduse", "qemu")
        with image(_TMPFS) as raw:
            for name in images:
                cluster.rbd("import", raw, f"{POOL}/{name}")
        yield {name: f"driver=rbd,pool={POOL},image={name},conf={cluster.conf}" for name in images}


#: By the driver that is measured, and the data that it is measured on.
NODES: dict[str, dict[str, Callable[[], AbstractContextManager[Blockdevs]]]] = {
    "file": {
        "tmpfs": partial(_file, _TMPFS, _CACHED),
        "O_DIRECT": partial(_file, str(CACHE), _DIRECT),
    },
    "qcow2": {
        "tmpfs": partial(_qcow2, _TMPFS, _CACHED),
        "O_DIRECT": partial(_qcow2, str(CACHE), _DIRECT),
    },
    "nbd": {"memory": _nbd},
    "rbd": {"cluster": _rbd},
}
