"""Platforms of the contract suite: each test runs on all of them, unless a mark says otherwise.

``profile("7.2")``: on platforms with this profile only. ``where("child")``: only where device
programs are processes of their own. ``row("ID", ...)``: the rows of docs/kernel-behaviour.md
that a test shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from _pytest.mark.structures import ParameterSet

from tests.contract.device_ring import finish_all
from tests.contract.devices import BOUNCE, RawDevice
from tests.contract.embedded import EmbeddedPlatform
from tests.contract.kernel import KernelPlatform
from tests.contract.page import difference_rows, linux_rows_under_run
from tests.contract.ports import Disk, Platform, Program, Where
from tests.contract.run import RunPlatform
from vduse.bus.driver import Driver


@dataclass(frozen=True)
class Implementation:
    """One platform there is."""

    name: str
    profile: str
    #: Where device programs run.
    where: Where
    make: Callable[[], Platform]
    #: Intended differences from Linux that it does not have. A test of no other rows does not run
    #: there: the one reason for which a test is left out.
    as_linux: Sequence[str] = ()
    #: It is Linux itself, and runs in a guest with that kernel.
    linux: bool = False

    def fits(self, test: pytest.Function) -> bool:
        """Whether a test is for it, by the test's marks."""
        profile = test.get_closest_marker("profile")
        where = test.get_closest_marker("where")
        return (
            (profile is None or self.profile in profile.args)
            and (where is None or self.where in where.args)
            and not set(marked_rows(test)) <= set(self.as_linux)
        )

    def parameter(self) -> ParameterSet:
        """For tests' ``platform``."""
        marks = [pytest.mark.kernel(self.profile)] if self.linux else []
        return pytest.param(self.make, id=self.name, marks=marks)


def marked_rows(test: pytest.Function) -> list[str]:
    """The rows that a test shows."""
    return [row for mark in test.iter_markers("row") for row in mark.args]


def run_implementation(profile: str) -> Implementation:
    """`vduse run`."""
    return Implementation(
        f"run-{profile}",
        profile,
        "child",
        lambda: RunPlatform(profile),
        as_linux=linux_rows_under_run(),
    )


def kernel_implementation(profile: str) -> Implementation:
    """That kernel itself."""
    return Implementation(
        f"kernel-{profile}",
        profile,
        "child",
        lambda: KernelPlatform(profile),
        as_linux=difference_rows(),
        linux=True,
    )


IMPLEMENTATIONS = [
    Implementation("embedded-6.12", "6.12", "process", lambda: EmbeddedPlatform("6.12", "process")),
    Implementation(
        "embedded-6.12-child", "6.12", "child", lambda: EmbeddedPlatform("6.12", "child")
    ),
    Implementation("embedded-7.2", "7.2", "process", lambda: EmbeddedPlatform("7.2", "process")),
    Implementation("embedded-7.2-child", "7.2", "child", lambda: EmbeddedPlatform("7.2", "child")),
    run_implementation("6.12"),
    run_implementation("7.2"),
    kernel_implementation("6.12"),
    kernel_implementation("7.2"),
]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises ``platform`` by the marks; first of all parameters, so that a test has the same
    name whichever way pytest has come here: a guest gets the names from outside."""
    if "platform" in metafunc.fixturenames:
        fit = [each.parameter() for each in IMPLEMENTATIONS if each.fits(metafunc.definition)]
        metafunc.parametrize("platform", fit, indirect=True)


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
    finish_all(served.node)
    platform.dev_del("vd0")
