"""Reads and writes of a node."""

from __future__ import annotations

import os
import random

from tests.system.villains.base import (
    create,
    ioctl,
    open_control,
    open_node,
    outcome,
    readable,
    say,
    send,
    villain,
)
from vduse.control.abi import (
    DevRequest,
    DevResponse,
    Ioctl,
)


@villain
def well_behaved() -> None:
    """The least that a device does."""
    os.close(create())


@villain
def garbage() -> None:
    """Writes of all sizes, answers to what nobody asked."""
    node = create()
    source = random.Random(1)
    for _ in range(500):
        send(node, source.randbytes(source.randrange(1, 8192)))
    for _ in range(5000):
        send(node, DevResponse(source.randrange(1 << 32)).pack())
    say(outcome(ioctl, node, Ioctl.DEV_GET_FEATURES))


@villain
def oversized() -> None:
    """A write that is longer than any message."""
    node = create()
    send(node, bytes(100_000))
    readable(node)
    say(outcome(ioctl, node, Ioctl.DEV_GET_FEATURES))
    os.close(node)
    say(outcome(open_node))


@villain
def empty_write() -> None:
    """A write of nothing."""
    node = create()
    os.write(node, b"")
    control = open_control()
    os.write(control, b"")
    os.close(node)
    os.close(control)
    say(outcome(open_node), outcome(open_control))


@villain
def silent() -> None:
    """Answers nothing."""
    node = create()
    say("ready")
    readable(0)
    for nr in (Ioctl.DEV_GET_FEATURES, Ioctl.VQ_INJECT_IRQ, 0x8177):
        say(outcome(ioctl, node, nr))


@villain
def closes_in_mid_message() -> None:
    """Takes each message, closes its node, opens it again, and answers then."""
    node = create()
    say("ready")
    while node in readable(node, 0):
        first = os.read(node, DevRequest.SIZE)
        os.close(node)
        node = open_node()
        readable(node)
        again = os.read(node, DevRequest.SIZE)
        say("replayed" if again == first else "lost")
        os.write(node, DevResponse(DevRequest.unpack(again).request_id).pack())


@villain
def exits_in_mid_message() -> None:
    """Takes a message and is gone."""
    node = create()
    say("ready")
    readable(node)
    os.read(node, DevRequest.SIZE)
