"""`vduse blk --via kernel` beside a kernel that is made up: order, and what is left behind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vduse.daemon.blk import kernel as module
from vduse.daemon.blk.kernel import KernelAttachment
from vduse.daemon.dev.errors import KernelRefused
from vduse.daemon.errors import UserError
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver


class Kernel:
    """What the attachment touches. ``calls``: in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.loaded = set(BusDriver)
        self.bus: dict[str, str | None] = {}
        #: Bound by the bus itself.
        self.first = "virtio_vdpa"
        self.held: tuple[str, ...] = ()
        #: Is there everywhere.
        self.place: str | None = "/dev/null"
        self.errors: dict[str, int] = {}

    def did(self, *call: str) -> None:
        self.calls.append(call)
        if (code := self.errors.get(call[0])) is not None:
            raise OSError(code, "refused")

    # --- VdpaBus ---

    def has_driver(self, driver: str) -> bool:
        return driver in self.loaded

    def names(self) -> list[str]:
        return list(self.bus)

    def bind(self, name: str, driver: str) -> None:
        self.did("bind", name, driver)
        self.bus[name] = driver

    def driver(self, name: str) -> str | None:
        return self.bus[name]

    def node(self, name: str) -> str | None:
        if name not in self.bus:
            raise OSError(errno.ENODEV, "no device")
        return self.place

    # --- VdpaManagement ---

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, name: str) -> None:
        self.did("add", name)
        self.bus[name] = self.first

    def delete(self, name: str) -> None:
        self.did("del", name)
        del self.bus[name]

    # --- KernelControl ---

    def destroy_dev(self, name: str) -> None:
        self.did("destroy", name)

    def close(self) -> None:
        pass


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    for name in ("VdpaBus", "VdpaManagement", "KernelControl"):
        monkeypatch.setattr(module, name, lambda *_: kernel)
    monkeypatch.setattr(module, "users", lambda _node: kernel.held)
    return kernel


def attachment(driver: BusDriver = BusDriver.VIRTIO_VDPA) -> KernelAttachment:
    return KernelAttachment("disk0", driver)


def device() -> BlkDevice:
    """Nothing is asked of it."""
    return object.__new__(BlkDevice)


def test_from_nothing_to_the_node_and_back(kernel: Kernel) -> None:
    here = attachment()
    reach = here.attach(device())
    assert (reach.driver, reach.node) == ("virtio_vdpa", "/dev/null")
    assert here.detach(answering=True) is None
    kernel.errors["destroy"] = errno.EINVAL  # by another's hand
    assert here.close() is None
    assert [call[0] for call in kernel.calls] == ["destroy", "add", "bind", "del", "destroy"]


def test_device_that_is_on_the_bus_is_taken_over_there(kernel: Kernel) -> None:
    kernel.bus["disk0"] = "virtio_vdpa"
    attachment(BusDriver.VHOST_VDPA).attach(device())
    assert kernel.calls == [("bind", "disk0", "vhost_vdpa")]


def test_driver_that_does_not_take_what_was_left(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NODE_TIMEOUT", 0.0)
    kernel.bus["disk0"] = "virtio_vdpa"
    kernel.place = None
    here = attachment()
    with pytest.raises(UserError, match="did not take disk0, which an earlier program left"):
        here.attach(device())
    here.detach(answering=True)
    assert kernel.bus == {}
    with pytest.raises(KernelRefused, match="modprobe virtio_blk"):
        here.attach(device())


def test_driver_that_is_not_loaded(kernel: Kernel) -> None:
    kernel.loaded.clear()
    with pytest.raises(KernelRefused, match="modprobe -a vduse virtio_blk vhost_vdpa"):
        attachment(BusDriver.VHOST_VDPA)


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        ("add", errno.EPERM, "disk0: putting it on the vDPA bus takes CAP_NET_ADMIN"),
        ("bind", errno.EACCES, "disk0: changing a driver takes root"),
        ("bind", errno.ENODEV, "disk0: the driver did not take it"),
    ],
)
def test_refusals_say_what_to_do(kernel: Kernel, call: str, code: int, message: str) -> None:
    kernel.errors[call] = code
    with pytest.raises(KernelRefused, match=message):
        attachment().attach(device())


def test_broken_device_in_use_is_left_with_the_way_out(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking it off the bus would wait for requests that nobody answers."""
    monkeypatch.setattr("os.path.exists", lambda _path: True)
    kernel.bus["disk0"] = "virtio_vdpa"
    kernel.held = ("mounted at /mnt",)
    here = attachment()
    assert here.users() == ("/dev/null is mounted at /mnt",)
    failure = here.detach(answering=False)
    assert failure is not None
    assert failure.startswith("/dev/null is mounted at /mnt; disk0 is left on the kernel's bus")
    assert failure.endswith("vduse dev del disk0 removes it")
    assert kernel.calls == []


def test_bus_that_does_not_let_go_is_said(kernel: Kernel) -> None:
    kernel.bus["disk0"] = "virtio_vdpa"
    kernel.errors["del"] = errno.EPERM
    failure = attachment().detach(answering=True)
    assert failure is not None and failure.startswith("refused")


def test_device_that_somebody_else_took_off_the_bus(kernel: Kernel, tmp_path: Path) -> None:
    kernel.bus["disk0"] = "virtio_vdpa"
    kernel.errors["del"] = errno.ENODEV
    assert attachment().detach(answering=True) is None


@pytest.mark.parametrize("answering", [True, False])
def test_a_disk_in_use_is_left_however_the_program_ends(kernel: Kernel, answering: bool) -> None:
    """An end that nobody chose: its output cannot be written, or attaching it failed."""
    kernel.bus["disk0"] = "virtio_vdpa"
    kernel.held = ("mounted at /mnt",)
    failure = attachment().detach(answering=answering)
    assert failure is not None and failure.startswith("/dev/null is mounted at /mnt")
    assert ("del", "disk0") not in kernel.calls


def test_a_driver_that_was_bound_since_keeps_a_disk_in_use(kernel: Kernel) -> None:
    kernel.bus["disk0"] = "vhost_vdpa"
    kernel.held = ("open in qemu (pid 7)",)
    with pytest.raises(UserError, match=r"open in qemu \(pid 7\).* or --driver vhost_vdpa"):
        attachment().attach(device())
    assert kernel.bus["disk0"] == "vhost_vdpa"
    kernel.held = ()
    attachment().attach(device())
    assert kernel.bus["disk0"] == "virtio_vdpa"
