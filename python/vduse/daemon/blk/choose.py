"""Which way `vduse blk` takes, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from vduse.daemon.blk.attachment import Attachment
from vduse.daemon.commands import BlkOptions
from vduse.daemon.dev.errors import KernelRefused
from vduse.daemon.errors import UserError


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
    if options.via == "kernel" and options.nbd is not None:
        raise UserError("NBD is the embedded framework's: leave out --nbd, or --via kernel")
    if options.via == "kernel" and options.qmp is not None:
        raise UserError("--qmp is for --nbd; vduse dev knows the kernel's bus by itself")
    if options.via == "kernel":
        return Way("kernel", "asked for by --via")
    if options.nbd is None and (options.via == "embedded" or options.qmp is not None):
        raise UserError("say where to serve: --nbd SOCKET")
    if options.nbd is None:
        return Way("kernel", "its VDUSE is usable here; --nbd SOCKET does without", chosen=True)
    if options.driver != "virtio_vdpa":
        raise UserError(f"NBD needs --driver virtio_vdpa; {options.driver} is for --via kernel")
    if options.via == "embedded":
        return Way("embedded", "asked for by --via")
    return Way(
        "embedded", "the framework in this process, because --nbd is its socket", chosen=True
    )


def open_attachment(way: Way, options: BlkOptions, backend: str) -> Attachment:
    """UserError. Handlers import what they run: the framework, or netlink."""
    if way.via == "kernel":
        from vduse.daemon.blk.kernel import KernelAttachment
        from vduse.vdpa.drivers import BusDriver

        return KernelAttachment(options.name, BusDriver(options.driver))
    from vduse.daemon.blk.embedded import EmbeddedAttachment

    assert options.nbd is not None  # of choose
    return EmbeddedAttachment(
        options.nbd, mode=options.nbd_mode, description=backend, qmp=options.qmp
    )


@contextmanager
def other_way(way: Way) -> Iterator[None]:
    """Where the way was chosen, and the kernel refuses it, the error names the other one."""
    try:
        yield
    except KernelRefused as error:
        if not way.chosen:
            raise
        raise KernelRefused(f"{error}. Without the kernel: --nbd SOCKET") from error
