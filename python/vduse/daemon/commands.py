"""The command table. Handlers import what they run: help and errors must not wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vduse.control.units import parse_size
from vduse.daemon.bench.commands import BENCH
from vduse.daemon.dev.commands import DEV
from vduse.daemon.run.commands import RUN
from vduse.daemon.table import (
    Command,
    Context,
    Group,
    argument,
    flag,
    option,
    optional,
    ordered,
    repeatable,
)
from vduse.daemon.trace.commands import TRACE
from vduse.daemon.trace.options import trace_json_option, trace_option
from vduse.daemon.values import (
    DRIVERS,
    cpu_list,
    group,
    mode,
    one_of,
    path,
    power_of_two,
    user,
    whole,
)
from vduse.daemon.watch.commands import HEALTH, TOP
from vduse.daemon.watch.options import log_format_option, log_level_option, metrics_option

if TYPE_CHECKING:
    from collections.abc import Generator

    from vduse.daemon.blk.facts import Facts as BlkFacts
    from vduse.daemon.demo.report import Report
    from vduse.daemon.doctor import Diagnosis
    from vduse.daemon.storage.serve import Facts as StorageFacts


@dataclass(frozen=True)
class BlkOptions:
    """Options of ``vduse blk``."""

    backend: str | None = argument(
        "what stores the bytes: a disk image, qcow2:PATH, rbd:POOL/IMAGE, nbd:HOST:PORT, null, "
        "memory, or python:MODULE:CLASS",
        metavar="IMAGE",
    )
    size: int | None = optional(
        "size of null, memory, and of Python backends that have none of their own",
        metavar="SIZE",
        parse=parse_size,
    )
    name: str = option("disk0", "name of the device, and of the export", metavar="N")
    queues: int = option("1", "virtqueues", metavar="N", parse=whole(1, 64))
    queue_size: int = option(
        "256", "entries of a virtqueue", metavar="N", parse=power_of_two(4, 32768)
    )
    packed: bool = flag("packed virtqueues instead of split ones")
    read_only: bool = flag("offer the disk read-only")
    direct: bool = flag("bypass the page cache (O_DIRECT)")
    umem: bool = flag("bounce pages of this program's own, pinned (docs/kernel.md)")
    no_poll: bool = flag("sleep at once when there is nothing to do (docs/performance.md)")
    cpus: tuple[int, ...] | None = optional(
        "pin the workers, one to each of these CPUs, as in 0,2-3", metavar="LIST", parse=cpu_list
    )
    layer: tuple[str, ...] = repeatable(
        "a layer on the backend, as in throttle,iops=1000; each goes on the one before "
        "(docs/layers.md)",
        metavar="NAME,KEY=VALUE",
    )
    via: str = option(
        "auto",
        "kernel: a /dev/vdX; embedded: this process alone, with --nbd or --vhost-user; auto: "
        "embedded with one of these, else the kernel",
        metavar="WAY",
        parse=one_of("auto", "kernel", "embedded"),
    )
    driver: str | None = optional(
        "of the kernel's bus: virtio_vdpa (default) for a /dev/vdX, vhost_vdpa for a "
        "/dev/vhost-vdpa-N",
        metavar="DRIVER",
        parse=one_of(*DRIVERS),
    )
    nbd: str | None = optional("serve NBD at this unix socket", metavar="SOCKET")
    nbd_mode: int = option(
        "0600", "who may connect: mode of the socket", metavar="MODE", parse=mode
    )
    vhost_user: str | None = optional(
        "serve virtual machines at this unix socket (docs/vhost-user.md)", metavar="SOCKET"
    )
    vhost_user_mode: int | None = optional(
        "who may connect: mode of that socket, default 0600", metavar="MODE", parse=mode
    )
    vhost_user_owner: int | None = optional(
        "owner of that socket, by name or number", metavar="USER", parse=user
    )
    vhost_user_group: int | None = optional(
        "group of that socket, by name or number", metavar="GROUP", parse=group
    )
    vhost_user_connect: bool = flag(
        "the virtual machine listens at that socket: connect, again and again"
    )
    qmp: str | None = optional(
        "with --nbd or --vhost-user: serve the bus in this process by QMP, for "
        "vduse dev --qmp SOCKET",
        metavar="SOCKET",
    )
    metrics: str | None = metrics_option()
    log_format: str | None = log_format_option()
    log_level: str | None = log_level_option()
    trace: str | None = trace_option()
    trace_json: str | None = trace_json_option()


@dataclass(frozen=True)
class DemoOptions:
    """Options of ``vduse demo``."""

    image: str | None = argument(
        "disk image; made if it does not exist. One that has contents is only read. "
        "Left out: a temporary one",
        metavar="IMAGE",
    )
    size: int = option(
        "1G",
        "size of an image that is made; of one with contents, how much is read",
        metavar="SIZE",
        parse=parse_size,
    )
    queues: int = option("1", "virtqueues", metavar="N", parse=whole(1, 64))
    queue_size: int = option(
        "256", "entries of a virtqueue", metavar="N", parse=power_of_two(4, 32768)
    )
    packed: bool = flag("packed virtqueues instead of split ones")
    read_only: bool = flag("offer the disk read-only; a new image is filled beforehand")
    direct: bool = flag("bypass the page cache (O_DIRECT)")
    keep: bool = flag("keep the images that were made")


@dataclass(frozen=True)
class DoctorOptions:
    """Options of ``vduse doctor``: none."""


@dataclass(frozen=True)
class StorageDaemonOptions:
    """Options of ``vduse storage-daemon``."""

    objects: tuple[tuple[str, str], ...] = ordered(
        ("object", "an object: qom-type throttle-group, secret or tls-creds-x509"),
        ("blockdev", "a block node: driver file, host_device and so on (docs/reference.md)"),
        ("nbd-server", "where exports of type nbd are found: a unix socket, a port, or systemd's"),
        ("export", "a node, exported: type vduse-blk, vhost-user-blk or nbd"),
        ("chardev", "a unix socket that a monitor listens at, by its path or systemd's name"),
        ("monitor", "QMP on a chardev"),
        metavar="KEY=VALUE,...",
    )
    config: str | None = optional(
        "a TOML file that says the same, in any order; made before the options", metavar="FILE"
    )
    check: str | None = optional(
        "tell every mistake in such a file, with its line, and end", metavar="FILE"
    )
    pidfile: str | None = optional(
        "written and locked once everything is made", metavar="PATH", parse=path
    )
    daemonize: bool = flag("go into the background once everything is made")
    metrics: str | None = metrics_option()
    log_format: str | None = log_format_option()
    log_level: str | None = log_level_option()
    # No --trace: QEMU's means something else.
    trace_json: str | None = trace_json_option("calls and messages of vduse-blk exports")


def _blk(options: BlkOptions, context: Context) -> Generator[BlkFacts]:
    from vduse.daemon.blk.serve import serve

    return serve(options, context)


def _show_blk(facts: BlkFacts, context: Context) -> None:
    from vduse.daemon.blk.facts import show

    show(facts, context)


def _demo(options: DemoOptions, context: Context) -> Report:
    from vduse.daemon.demo import run

    return run(options, context)


def _show_demo(report: Report, context: Context) -> None:
    from vduse.daemon.demo.report import show

    show(report, context)


def _doctor(_options: DoctorOptions, _context: Context) -> Diagnosis:
    from vduse.daemon.doctor import diagnose

    return diagnose()


def _show_doctor(diagnosis: Diagnosis, context: Context) -> None:
    from vduse.daemon.doctor import show

    show(diagnosis, context)


def _storage_daemon(options: StorageDaemonOptions, context: Context) -> Generator[StorageFacts]:
    from vduse.daemon.storage.serve import serve

    return serve(options, context)


def _show_storage_daemon(facts: StorageFacts, context: Context) -> None:
    from vduse.daemon.storage.serve import show

    show(facts, context)


TABLE: tuple[Command[Any, Any] | Group, ...] = (
    Command(
        name="blk",
        help="Serve a disk, as a /dev/vdX, over NBD or vhost-user, until stopped",
        description=(
            "Serves a virtio-blk device until SIGINT, SIGTERM or SIGHUP: on the kernel's VDUSE\n"
            "as a /dev/vdX (or a /dev/vhost-vdpa-N), as root; or through the embedded\n"
            "framework, as anybody, to NBD clients (virtio_vdpa) or to a virtual machine over\n"
            "vhost-user (vhost_vdpa). A /dev/vdX that is mounted or open then is served until it\n"
            "is not; a second signal ends the program at once. SIGUSR1 prints the statistics as\n"
            "one line of JSON. Exit code 1 if the device broke."
        ),
        examples=(
            ("vduse blk disk.img", "an image as a /dev/vdX of the kernel's, as root"),
            ("vduse blk disk.img --driver vhost_vdpa", "for a virtual machine, as root"),
            ("vduse blk disk.img --nbd disk.sock", "an image at a socket"),
            ("vduse blk disk.img --queues 4 --vhost-user disk.sock", "for QEMU, without root"),
            ("vduse blk memory --size 1G --queues 4 --nbd ram.sock", "a RAM disk"),
            ("vduse blk disk.img --read-only --nbd disk.sock --nbd-mode 0666", "for all to read"),
            (
                "vduse blk disk.img --layer throttle,iops=1000 --nbd disk.sock --json",
                "a slow one, facts as lines of JSON",
            ),
        ),
        options=BlkOptions,
        run=_blk,
        show=_show_blk,
        exit_code=lambda facts: int(facts.broken),
    ),
    Command(
        name="demo",
        help="Real I/O on a file system image, through the whole stack",
        description=(
            "Serves an image as a virtio-blk device on the embedded framework, attaches it with\n"
            "virtio_vdpa, writes and reads real files through it, compares checksums, and\n"
            "prints what moved on the control path and the data path."
        ),
        examples=(
            ("vduse demo", "a temporary 1 GiB image"),
            ("vduse demo disk.img --size 4G --keep", "make disk.img and keep it"),
            ("vduse demo disk.img", "again: disk.img has contents now and is only read"),
            ("vduse demo --packed --queues 4 --json", "packed rings, four queues, facts as JSON"),
        ),
        options=DemoOptions,
        run=_demo,
        show=_show_demo,
    ),
    RUN,
    BENCH,
    DEV,
    Command(
        name="doctor",
        help="What this host can do, and what is missing for the rest",
        description="Checks this host. Exit code 1 if the embedded framework cannot work here.",
        examples=(
            ("vduse doctor", "one line a check"),
            ("vduse doctor --json", "the same for a program"),
        ),
        options=DoctorOptions,
        run=_doctor,
        show=_show_doctor,
        exit_code=lambda diagnosis: 0 if diagnosis.embedded_framework else 1,
    ),
    Command(
        name="storage-daemon",
        help="Disks on the kernel's VDUSE, vhost-user and NBD, with QEMU's interface",
        description=(
            "Exports block nodes as VDUSE devices of the kernel, which `vdpa dev add` attaches,\n"
            "over vhost-user and over NBD until quit, SIGTERM, SIGINT or SIGHUP. Options are made\n"
            "in the order given, and as those of QEMU's storage daemon: KEY=VALUE,... with dots\n"
            "for what is within and commas doubled, or JSON (docs/storage-daemon.md). What of\n"
            "QEMU's is not supported is refused by name. Exit code 1 where --check finds a mistake."
        ),
        examples=(
            (
                "vduse storage-daemon --blockdev "
                "driver=file,filename=disk.img,node-name=disk0 --export "
                "vduse-blk,id=e0,node-name=disk0,name=vduse1,writable=on",
                "an image as the device vduse1",
            ),
            (
                "vduse storage-daemon --blockdev "
                "driver=host_device,filename=/dev/nullb0,node-name=disk0,"
                "cache.direct=on,aio=native --export "
                "vduse-blk,id=e0,node-name=disk0,name=vduse1,writable=on,num-queues=16",
                "a block device, past the page cache, on 16 virtqueues",
            ),
            (
                "vduse storage-daemon --blockdev "
                "driver=file,filename=disk.img,node-name=disk0 --nbd-server "
                "addr.type=unix,addr.path=nbd.sock --export nbd,id=e0,node-name=disk0",
                "an image for NBD clients: nbd+unix:///disk0?socket=nbd.sock",
            ),
            (
                "vduse storage-daemon --chardev "
                "socket,id=qmp,path=qmp.sock,server=on,wait=off --monitor chardev=qmp",
                "nothing as yet: clients at qmp.sock say what",
            ),
            ("vduse storage-daemon --check disks.toml", "every mistake in a file, with its line"),
        ),
        options=StorageDaemonOptions,
        run=_storage_daemon,
        show=_show_storage_daemon,
        exit_code=lambda facts: int(bool(getattr(facts, "mistakes", ()))),
    ),
    HEALTH,
    TOP,
    TRACE,
)
