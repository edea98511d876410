"""Which way `vduse blk` takes, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vduse.daemon.blk.attachment import Attachment
from vduse.daemon.commands import BlkOptions
from vduse.daemon.dev.errors import KernelRefused
from vduse.daemon.errors import UserError

if TYPE_CHECKING:
    from vduse.daemon.doors.door import Door
    from vduse.daemon.trace.tracing import Tracing

#: What serves at a socket of its own, and the driver that it needs.
_SOCKETS = {"nbd": ("--nbd", "virtio_vdpa"), "vhost_user": ("--vhost-user", "vhost_vdpa")}
_WITHOUT = "--nbd SOCKET or --vhost-user SOCKET"
_SOCKET_MODE = 0o600
#: The kernel that the framework in this process plays.
EMBEDDED_PROFILE = "6.12"


@dataclass(frozen=True)
class Way:
    """A choice."""

    via: Literal["kernel", "embedded"]
    #: For people to read.
    why: str
    #: It was not asked for by name: another one may do.
    chosen: bool = False


def choose(options: BlkOptions) -> Way:
    """The way that the options ask for. UserError: they contradict each other."""
    _check_vhost_user(options)
    socket = next((name for name in _SOCKETS if getattr(options, name) is not None), None)
    if options.via == "kernel":
        _check_kernel(options, socket)
        return Way("kernel", "asked for by --via")
    if socket is None and (options.via == "embedded" or options.qmp is not None):
        raise UserError("say where to serve: --nbd SOCKET or --vhost-user SOCKET")
    if socket is None:
        return Way("kernel", f"its VDUSE is usable here; {_WITHOUT} does without", chosen=True)
    option, driver = _SOCKETS[socket]
    if options.driver not in (None, driver):
        raise UserError(f"{option} needs {driver}: leave out --driver {options.driver}")
    if options.via == "embedded":
        return Way("embedded", "asked for by --via")
    why = f"the framework in this process, because {option} is its socket"
    return Way("embedded", why, chosen=True)


def _check_vhost_user(options: BlkOptions) -> None:
    given = [
        f"--vhost-user-{name}"
        for name in ("mode", "owner", "group")
        if getattr(options, f"vhost_user_{name}") is not None
    ]
    if options.vhost_user_connect and options.vhost_user is not None and given:
        raise UserError(f"the socket is the virtual machine's: leave out {given[0]}")
    if options.vhost_user_connect:
        given.append("--vhost-user-connect")
    if options.vhost_user is None and given:
        raise UserError(f"{given[0]} is for a socket: --vhost-user SOCKET")
    if options.vhost_user is not None and options.nbd is not None:
        raise UserError("a device has one driver at a time: --nbd or --vhost-user")
    if options.vhost_user is not None and options.umem:
        raise UserError("--umem is for bounce pages, and --vhost-user has none: leave it out")


def _check_kernel(options: BlkOptions, socket: str | None) -> None:
    if socket is not None:
        option, _ = _SOCKETS[socket]
        raise UserError(f"{option} is the embedded framework's: leave it out, or --via kernel")
    if options.qmp is not None:
        raise UserError("--qmp is for --nbd and --vhost-user; vduse dev knows the kernel's bus")


def open_attachment(way: Way, options: BlkOptions, backend: str, tracing: Tracing) -> Attachment:
    """UserError. Handlers import what they run: the framework, or netlink."""
    if way.via == "kernel":
        from vduse.daemon.blk.kernel import KernelAttachment
        from vduse.vdpa.drivers import BusDriver

        driver = BusDriver(options.driver or BusDriver.VIRTIO_VDPA)
        return KernelAttachment(options.name, driver, tapped=tracing.tapped)
    from vduse.daemon.blk.embedded import EmbeddedAttachment
    from vduse.framework import Framework

    framework = Framework(EMBEDDED_PROFILE, tap=tracing.tap)
    return EmbeddedAttachment(_door(options, backend), framework, qmp=options.qmp)


def _door(options: BlkOptions, backend: str) -> Door:
    if options.vhost_user is not None:
        from vduse.daemon.doors.vhost_user import VhostUserDoor

        return VhostUserDoor(
            options.vhost_user,
            connect=options.vhost_user_connect,
            mode=_SOCKET_MODE if options.vhost_user_mode is None else options.vhost_user_mode,
            owner=options.vhost_user_owner,
            group=options.vhost_user_group,
        )
    from vduse.daemon.doors.nbd import NbdDoor

    assert options.nbd is not None  # of choose
    return NbdDoor(options.nbd, mode=options.nbd_mode, description=backend)


@contextmanager
def other_way(way: Way) -> Iterator[None]:
    """Where the way was chosen, and the kernel refuses it, the error names the other one."""
    try:
        yield
    except KernelRefused as error:
        if not way.chosen:
            raise
        raise KernelRefused(f"{error}. Without the kernel: {_WITHOUT}") from error
