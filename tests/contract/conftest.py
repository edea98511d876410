"""Platforms of the contract suite: each test runs on all of them, unless a mark says otherwise.

``profile("7.2")``: on platforms with this profile only. ``where("child")``: only where device
programs are processes of their own. ``row("ID", ...)``: the rows of docs/kernel-behaviour.md
that a test shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.contract.devices import BOUNCE, RawDevice
from tests.contract.embedded import EmbeddedPlatform
from tests.contract.ports import Disk, Platform, Program, Where
from vduse.bus.driver import Driver

#: Everything there is: name, profile, where device programs run, and how to make one.
PLATFORMS: list[tuple[str, str, Where, Callable[[], Platform]]] = [
    ("embedded-6.12", "6.12", "process", lambda: EmbeddedPlatform("6.12", "process")),
    ("embedded-6.12-child", "6.12", "child", lambda: EmbeddedPlatform("6.12", "child")),
    ("embedded-7.2", "7.2", "process", lambda: EmbeddedPlatform("7.2", "process")),
    ("embedded-7.2-child", "7.2", "child", lambda: EmbeddedPlatform("7.2", "child")),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises ``platform`` by the marks."""
    if "platform" not in metafunc.fixturenames:
        return
    profile = metafunc.definition.get_closest_marker("profile")
    where = metafunc.definition.get_closest_marker("where")
    fit = [
        (name, make)
        for name, of_profile, in_where, make in PLATFORMS
        if (profile is None or of_profile in profile.args)
        and (where is None or in_where in where.args)
    ]
    metafunc.parametrize(
        "platform", [make for _, make in fit], ids=[name for name, _ in fit], indirect=True
    )


@pytest.fixture
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """What plays the kernel's part."""
    made: Platform = request.param()
    yield made
    made.close()


@pytest.fixture
def program(platform: Platform) -> Program:
    """A device program with an open control node."""
    return platform.program()


@pytest.fixture
def device(program: Program) -> RawDevice:
    """A block device ``vd0`` with one virtqueue; the test takes and answers its messages."""
    return RawDevice.create(program)


@pytest.fixture
def served(device: RawDevice) -> Iterator[RawDevice]:
    """The same, its messages answered OK by a thread."""
    yield device.serve()
    device.stop()


@pytest.fixture
def driver(platform: Platform, served: RawDevice) -> Iterator[Driver]:
    """``vd0`` under vhost_vdpa, opened: its device (``served``) agrees with everything."""
    platform.dev_add("vd0", "vhost_vdpa")
    opened = platform.driver("vd0")
    yield opened
    opened.close()


@pytest.fixture
def eventfd() -> Iterator[Callable[[], int]]:
    """Makes eventfds, non-blocking."""
    made: list[int] = []

    def make() -> int:
        made.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


@pytest.fixture
def disk(platform: Platform, served: RawDevice) -> Iterator[Disk]:
    """``vd0`` (bounce region of 1 MiB) as a block device under virtio_vdpa. Nobody serves its
    virtqueue but the test."""
    platform.set_attribute("vd0", "bounce_size", BOUNCE)
    platform.dev_add("vd0", "virtio_vdpa")
    yield platform.disk("vd0")
    platform.dev_del("vd0")
