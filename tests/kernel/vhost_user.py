"""Disks of a guest at vhost-user sockets, as QEMU's command line has them; for ``Machine.qemu`` of
a machine whose memory is shared."""

from __future__ import annotations

from pathlib import Path


def vhost_user_disk(
    socket: Path,
    *,
    name: str = "disk",
    queues: int = 1,
    packed: bool = False,
    listens: bool = False,
) -> tuple[str, ...]:
    """A virtio-blk disk that the back end at ``socket`` serves. ``name``: one of its own for each
    disk. ``listens``: QEMU does, and waits for the back end to come; else it connects, and again
    where the back end has gone."""
    reach = "server=on,wait=off" if listens else "reconnect=1"
    device = f"vhost-user-blk-pci,id={name},chardev={name}-socket,num-queues={queues}"
    return (
        *("-chardev", f"socket,id={name}-socket,path={socket},{reach}"),
        *("-device", f"{device},packed={'on' if packed else 'off'}"),
    )
