"""Every test here runs on every kernel; what several modules' tests begin with."""

from __future__ import annotations

import pwd
from collections.abc import Iterator

import pytest

from tests.kernel.fetch import KERNELS
from tests.kernel.guest.bed import MIB, PACKAGING, load_modules, run
from tests.kernel.guest.ordinary import open_the_checkout
from tests.kernel.guest.systemd import udevd
from vduse import _native
from vduse.channel.kernel import KernelControl


@pytest.fixture(
    scope="session",
    autouse=True,
    params=[pytest.param(version, marks=pytest.mark.kernel(version)) for version in KERNELS],
)
def kernel(request: pytest.FixtureRequest) -> str:
    """The version of the kernel that the test runs on."""
    version: str = request.param
    return version


@pytest.fixture(scope="module")
def modules() -> None:
    """VDUSE, both bus drivers and virtio_blk are there."""
    load_modules()


@pytest.fixture
def control() -> Iterator[KernelControl]:
    """A control port."""
    port = KernelControl()
    yield port
    port.close()


@pytest.fixture
def backend() -> Iterator[_native.Backend]:
    """16 MiB of memory."""
    backend = _native.Backend.memory(16 * MIB)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def checkout() -> None:
    """Everybody may read this project."""
    open_the_checkout()


@pytest.fixture(scope="module")
def installed(modules: None, checkout: None) -> Iterator[pwd.struct_passwd]:
    """What the project ships, with udev's daemon; the user that it makes."""
    with udevd():
        run(str(PACKAGING / "install"))
        yield pwd.getpwnam("vduse")
