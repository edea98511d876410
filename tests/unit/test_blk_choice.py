"""Which way `vduse blk` takes, and what it says where that way is closed."""

from __future__ import annotations

import pytest

from vduse.daemon.blk.choose import Way, choose, other_way
from vduse.daemon.commands import BlkOptions
from vduse.daemon.dev.errors import KernelRefused
from vduse.daemon.errors import UserError


@pytest.mark.parametrize(
    ("options", "via", "chosen"),
    [
        (BlkOptions("null"), "kernel", True),
        (BlkOptions("null", driver="vhost_vdpa"), "kernel", True),
        (BlkOptions("null", via="kernel"), "kernel", False),
        (BlkOptions("null", nbd="s"), "embedded", True),
        (BlkOptions("null", nbd="s", qmp="q"), "embedded", True),
        (BlkOptions("null", nbd="s", via="embedded"), "embedded", False),
        (BlkOptions("null", nbd="s", driver="virtio_vdpa"), "embedded", True),
        (BlkOptions("null", vhost_user="s"), "embedded", True),
        (BlkOptions("null", vhost_user="s", qmp="q", driver="vhost_vdpa"), "embedded", True),
        (BlkOptions("null", vhost_user="s", via="embedded"), "embedded", False),
    ],
)
def test_choice_and_its_reason(options: BlkOptions, via: str, chosen: bool) -> None:
    way = choose(options)
    assert (way.via, way.chosen) == (via, chosen)
    socket = "--vhost-user" if options.vhost_user else "--nbd"
    assert way.why == "asked for by --via" if not chosen else socket in way.why


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            BlkOptions("null", via="embedded"),
            "say where to serve: --nbd SOCKET or --vhost-user SOCKET",
        ),
        (
            BlkOptions("null", qmp="q"),
            "say where to serve: --nbd SOCKET or --vhost-user SOCKET",
        ),
        (
            BlkOptions("null", via="kernel", nbd="s"),
            "--nbd is the embedded framework's: leave it out, or --via kernel",
        ),
        (
            BlkOptions("null", via="kernel", vhost_user="s"),
            "--vhost-user is the embedded framework's: leave it out, or --via kernel",
        ),
        (
            BlkOptions("null", via="kernel", qmp="q"),
            "--qmp is for --nbd and --vhost-user; vduse dev knows the kernel's bus",
        ),
        (
            BlkOptions("null", nbd="s", driver="vhost_vdpa"),
            "--nbd needs virtio_vdpa: leave out --driver vhost_vdpa",
        ),
        (
            BlkOptions("null", vhost_user="s", driver="virtio_vdpa"),
            "--vhost-user needs vhost_vdpa: leave out --driver virtio_vdpa",
        ),
        (
            BlkOptions("null", nbd="n", vhost_user="v"),
            "a device has one driver at a time: --nbd or --vhost-user",
        ),
        (
            BlkOptions("null", vhost_user="v", umem=True),
            "--umem is for bounce pages, and --vhost-user has none: leave it out",
        ),
        (
            BlkOptions("null", nbd="n", vhost_user_mode=0),
            "--vhost-user-mode is for a socket: --vhost-user SOCKET",
        ),
        (
            BlkOptions("null", vhost_user_connect=True),
            "--vhost-user-connect is for a socket: --vhost-user SOCKET",
        ),
        (
            BlkOptions("null", vhost_user="v", vhost_user_connect=True, vhost_user_owner=0),
            "the socket is the virtual machine's: leave out --vhost-user-owner",
        ),
    ],
)
def test_options_that_contradict_each_other(options: BlkOptions, message: str) -> None:
    with pytest.raises(UserError) as refused:
        choose(options)
    assert str(refused.value) == message


def test_kernels_refusal_of_a_chosen_way_names_the_other() -> None:
    with pytest.raises(KernelRefused) as refused, other_way(Way("kernel", "", chosen=True)):
        raise KernelRefused("no module: modprobe vduse")
    assert str(refused.value) == (
        "no module: modprobe vduse. Without the kernel: --nbd SOCKET or --vhost-user SOCKET"
    )


@pytest.mark.parametrize("error", [KernelRefused("no module"), UserError("no such image")])
def test_other_refusals_stay_as_they_are(error: UserError) -> None:
    chosen = not isinstance(error, KernelRefused)
    with pytest.raises(UserError) as refused, other_way(Way("kernel", "", chosen=chosen)):
        raise error
    assert refused.value is error
