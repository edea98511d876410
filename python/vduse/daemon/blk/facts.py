"""What `vduse blk` has to say: facts, and the same for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

from rich.console import Console

from vduse.control.statistics import Statistics
from vduse.control.units import format_size
from vduse.daemon.table import Context

#: Entries of its vhost-user-blk's virtqueues, where nothing is said.
_QEMU_QUEUE_SIZE = 128


@dataclass(frozen=True)
class Serving:
    """The disk can be reached."""

    event: str
    pid: int
    name: str
    #: As given.
    backend: str
    #: Bytes.
    size: int
    read_only: bool
    #: split or packed.
    ring: str
    queues: int
    queue_size: int
    #: What serves the backend: see :attr:`vduse._native.Backend.engine`.
    engine: str
    #: kernel or embedded.
    via: str
    #: Why that way.
    why: str
    #: virtio_vdpa or vhost_vdpa.
    driver: str
    #: Of the kernel: /dev/vdX or /dev/vhost-vdpa-N.
    node: str | None
    #: Of NBD or vhost-user.
    socket: str | None
    #: Of NBD.
    uri: str | None
    #: vhost-user's socket is the VMM's: this program connects to it.
    connects: bool


@dataclass(frozen=True)
class Counted:
    """SIGUSR1: the counters now."""

    event: str
    statistics: Statistics


@dataclass(frozen=True)
class Resized:
    """The backend has another size. A VM is told; NBD clients that connect from now on see it."""

    event: str
    #: Bytes.
    size: int


@dataclass(frozen=True)
class InUse:
    """A signal asked for the end, which waits until nobody uses the disk."""

    event: str
    name: str
    #: For people to read.
    users: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """The disk is not served any more."""

    event: str
    name: str
    #: The signal, or what broke.
    reason: str
    #: It did not end in order: a device that broke, data that may not be on stable storage.
    broken: bool
    #: Seconds that it was served.
    seconds: float
    statistics: Statistics


Facts = Serving | Counted | Resized | InUse | Ended


def show(facts: Facts, context: Context) -> None:
    """For people."""
    match facts:
        case Serving():
            _show_serving(facts, context.out)
        case Counted():
            print(json.dumps(facts.statistics), file=context.out.file, flush=True)
        case Resized():
            _print(context.out, f"resized to {format_size(facts.size)}")
        case InUse():
            _show_in_use(facts, context.err)
        case Ended(broken=True):
            context.err.print(f"vduse: {facts.name}: {facts.reason}", markup=False, soft_wrap=True)
        case Ended():
            _print(context.out, f"{facts.name}: stopped by {facts.reason}, all is flushed")


def _show_serving(facts: Serving, out: Console) -> None:
    kind = "read-only, " if facts.read_only else ""
    _print(out, f"{facts.name}: {format_size(facts.size)}, {kind}{facts.backend}")
    _print(
        out,
        f"{facts.ring} virtqueues: {facts.queues} of {facts.queue_size}; "
        f"{'connects to' if facts.connects else 'serves'} "
        f"{facts.node or facts.uri or facts.socket}",
    )
    _print(out, f"via {facts.via}: {facts.why}")
    _print(out, "")
    for line, what in _uses(facts):
        _print(out, f"  # {what}")
        _print(out, f"  {line}")
    _print(out, "")
    pid = facts.pid
    _print(out, f"Ctrl-C or kill {pid} ends it in order; kill -USR1 {pid} prints statistics.")


def _show_in_use(facts: InUse, err: Console) -> None:
    _print(err, f"{facts.name} goes on, because it is in use; it ends when this does:")
    for user in facts.users:
        _print(err, f"  {user}")
    _print(err, "A second signal ends the program at once, and leaves the device where it is.")


def _uses(facts: Serving) -> Iterator[tuple[str, str]]:
    """Command lines for a shell, and what each is for."""
    if facts.uri is not None:
        yield from _nbd_uses(facts, quote(facts.uri))
    elif facts.socket is not None:
        yield _qemu(facts, facts.socket), "the disk of a virtual machine"
    elif facts.driver == "vhost_vdpa":
        yield (
            f"qemu-system-x86_64 ... -device vhost-vdpa-device-pci,vhostdev={facts.node}",
            "the disk of a virtual machine; its memory is to be shared (memfd)",
        )
    elif facts.read_only:
        yield f"mount -o ro {facts.node} /mnt", "what is on it, as root"
    else:
        yield f"mkfs.ext4 {facts.node}", "a file system, where there is none yet, as root"
        yield f"mount {facts.node} /mnt", "to be used; umount /mnt before the end"


def _nbd_uses(facts: Serving, uri: str) -> Iterator[tuple[str, str]]:
    folder = quote(facts.name)
    raw, qcow2 = quote(f"{facts.name}.img"), quote(f"{facts.name}.qcow2")
    yield f"nbdinfo {uri}", "what there is"
    yield f"nbdcopy {uri} {raw}", "copy it to a file; the other way round: fill it"
    yield f"qemu-img convert -O qcow2 {uri} {qcow2}", "the same with QEMU's"
    yield (
        f"mkdir -p {folder}; nbdfuse {folder} {uri} & sleep 1; losetup --find --show {folder}/nbd",
        "a block device, as root",
    )


def _qemu(facts: Serving, path: str) -> str:
    """Its memory is shared; it asks for no more queues than there are."""
    chardev = f"socket,id=vu,path={path.replace(',', ',,')}{',server=on' if facts.connects else ''}"
    device = f"vhost-user-blk-pci,chardev=vu,num-queues={facts.queues}"
    if facts.queue_size < _QEMU_QUEUE_SIZE:
        device += f",queue-size={facts.queue_size}"
    if facts.ring == "packed":
        device += ",packed=on"
    return (
        "qemu-system-x86_64 ... -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on "
        f"-machine memory-backend=mem -chardev {quote(chardev)} -device {device}"
    )


def _print(out: Console, line: str) -> None:
    # Lines to paste are not wrapped, and brackets are no markup.
    out.print(line, markup=False, soft_wrap=True)
