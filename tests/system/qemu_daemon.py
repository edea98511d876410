"""Debian's qemu-storage-daemon with its vduse-blk export, untouched: how it is told."""

from __future__ import annotations

from pathlib import Path

PROGRAM = "qemu-storage-daemon"
MIB = 1 << 20


def make_image(path: Path, size: int) -> str:
    """An empty image of ``size`` bytes; its path."""
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def on_file(image: str, *, name: str = "disk0", queues: int = 1) -> list[str]:
    """Arguments: an image as device ``name``. The node is called as the device."""
    return [
        *("--blockdev", f"driver=file,filename={image},node-name={name}"),
        *_export(name, queues),
    ]


def on_null(size: int, *, name: str = "disk0", queues: int = 1, latency: int = 0) -> list[str]:
    """Arguments: a disk of ``size`` bytes that forgets, ``latency`` nanoseconds a request."""
    node = f"driver=null-co,size={size},read-zeroes=off,latency-ns={latency},node-name={name}"
    return ["--blockdev", node, *_export(name, queues)]


def _export(name: str, queues: int) -> list[str]:
    export = f"type=vduse-blk,id={name},name={name},node-name={name},writable=on"
    return ["--export", f"{export},num-queues={queues}"]


def monitor(path: Path) -> list[str]:
    """Arguments: QMP at a socket, before anything else is made."""
    return ["--chardev", f"socket,id=c,path={path},server=on,wait=off", "--monitor", "c"]
