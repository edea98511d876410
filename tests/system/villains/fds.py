"""Fds: too many, in other hands, of other kinds."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable

from tests.system.villains.base import (
    create,
    ioctl,
    open_control,
    open_node,
    outcome,
    readable,
    say,
    villain,
)
from vduse.control.abi import (
    Ioctl,
    VqEventfd,
    pack_u32,
)


def _until_refused(make: Callable[[], int]) -> tuple[list[int], str]:
    """All fds that can be had, and why there are no more."""
    fds: list[int] = []
    while True:
        try:
            fds.append(make())
        except OSError as error:
            return fds, errno.errorcode[error.errno or 0]


@villain
def hoards_fds() -> None:
    """As many nodes as there are, dups of them, a child that has them all, too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    node = create()
    nodes, why = _until_refused(open_control)
    say("nodes", why)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(len(nodes) + 1000, hard), hard))
    copies, why = _until_refused(lambda: os.dup(node))
    say("dups", why)
    child = os.fork()
    if child == 0:
        readable(0)
        os._exit(0)
    say(outcome(ioctl, nodes[-1], Ioctl.GET_API_VERSION))
    say(outcome(ioctl, copies[0], Ioctl.DEV_GET_FEATURES))
    say("full")
    readable(0)
    for fd in copies:
        os.close(fd)
    os.waitpid(child, 0)
    say(outcome(ioctl, node, Ioctl.DEV_GET_FEATURES))


@villain
def orphan() -> None:
    """A child goes on with the node when its parent has ended."""
    node = create()
    child = os.fork()
    if child:
        say(child)
        return
    os.close(1)
    while True:  # until somebody kills it
        ioctl(node, Ioctl.DEV_GET_FEATURES)


@villain
def replaced() -> None:
    """Another program goes on with the node."""
    node = create()
    os.set_inheritable(node, True)
    program = [sys.executable, "-m", "tests.system.villains", "replacement", str(node)]
    os.execv(program[0], program)


@villain
def replacement() -> None:
    """That program."""
    node = int(sys.argv[2])
    say(outcome(ioctl, node, Ioctl.DEV_GET_FEATURES), outcome(open_node))


@villain
def kick_fds() -> None:
    """What is no eventfd, and one that is closed under the device's feet."""
    node = create()
    reader, writer = os.pipe()
    for fd in (reader, writer, node, 1_000_000, 0x7FFF_FFFF):
        say(outcome(ioctl, node, Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, fd).pack()))
    for _ in range(100):
        kick = os.eventfd(0)
        ioctl(node, Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, kick).pack())
        os.close(kick)
    say(outcome(ioctl, node, Ioctl.VQ_INJECT_IRQ, pack_u32(0)))
