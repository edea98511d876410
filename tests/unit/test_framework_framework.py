"""The framework as a whole, over its sockets, with a device that speaks raw packets."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.raw_device import Caller, RawDevice, blk_config, ok, refuse
from vduse.bus.errors import DeviceBusy, DeviceExists, DeviceNotFound, DeviceTimedOut
from vduse.channel.tap import Recorder
from vduse.control.abi import (
    DevRequest,
    DevResponse,
    ExtCall,
    Ioctl,
    SetStatus,
    VqConfig,
    pack_name,
    pack_u64,
    unpack_u64,
)
from vduse.control.features import DeviceId, Feature, NetFeature
from vduse.framework import Framework, control_node

BASE = Feature.VERSION_1 | Feature.ACCESS_PLATFORM


@pytest.fixture
def framework() -> Iterator[Framework]:
    with Framework(bounce_size=1 << 20) as made:
        yield made


@pytest.fixture
def control(framework: Framework) -> Iterator[Caller]:
    caller = Caller(framework.control())
    yield caller
    caller.close()


@pytest.fixture
def device(control: Caller) -> Iterator[RawDevice]:
    made = RawDevice(control, blk_config(queues=2))
    made.set_up_queues()
    yield made
    made.close()


def call_errno(caller: Caller, nr: int, payload: bytes) -> int | None:
    with pytest.raises(OSError) as caught:
        caller.call(nr, payload)
    return caught.value.errno


def test_name_taken_is_eexist(framework: Framework, control: Caller) -> None:
    control.call(Ioctl.CREATE_DEV, blk_config().pack())
    assert call_errno(control, Ioctl.CREATE_DEV, blk_config().pack()) == errno.EEXIST
    assert list(framework.devices) == ["vd0"]


def test_open_is_enoent_without_a_device_and_ebusy_with_an_opener(
    control: Caller, device: RawDevice
) -> None:
    assert call_errno(control, ExtCall.OPEN, pack_name("vd1")) == errno.ENOENT
    assert call_errno(control, ExtCall.OPEN, pack_name("vd0")) == errno.EBUSY


def test_destroy_is_einval_then_ebusy_while_open_or_attached(
    framework: Framework, control: Caller, device: RawDevice
) -> None:
    assert call_errno(control, Ioctl.DESTROY_DEV, pack_name("vd1")) == errno.EINVAL
    assert call_errno(control, Ioctl.DESTROY_DEV, pack_name("vd0")) == errno.EBUSY
    framework.dev_add("vd0", driver=None)
    device.close()
    assert call_errno(control, Ioctl.DESTROY_DEV, pack_name("vd0")) == errno.EBUSY
    framework.dev_del("vd0")
    control.call(Ioctl.DESTROY_DEV, pack_name("vd0"))
    assert framework.devices == {}


def test_dev_add_errors(framework: Framework, control: Caller, device: RawDevice) -> None:
    with pytest.raises(DeviceNotFound, match="no device 'vd1'") as caught:
        framework.dev_add("vd1")
    assert caught.value.errno == errno.EINVAL
    device.calls.call(Ioctl.VQ_SETUP, VqConfig(1, 0).pack())
    with pytest.raises(OSError) as unset:
        framework.dev_add("vd0")
    assert unset.value.errno == errno.EINVAL
    device.set_up_queues()
    framework.dev_add("vd0", driver=None)
    with pytest.raises(DeviceExists):
        framework.dev_add("vd0", driver=None)


def test_a_driver_that_does_not_take_the_device_leaves_nothing_behind(
    framework: Framework, device: RawDevice
) -> None:
    device.reply = refuse
    with pytest.raises(OSError):
        framework.dev_add("vd0")
    assert framework.bus.devices == {}
    assert not framework.device("vd0").attached


def test_status_travels_to_the_device(framework: Framework, device: RawDevice) -> None:
    vdpa = framework.dev_add("vd0", driver=None)
    vdpa.reset()
    vdpa.set_status(1)
    assert device.seen == [SetStatus(0), SetStatus(1)]
    assert framework.device("vd0").stats()["messages_SET_STATUS"] == 2


def test_messages_wait_for_the_next_opener(framework: Framework, device: RawDevice) -> None:
    """A device killed between a message and its answer; the sender notices nothing."""
    taken = threading.Event()

    def silent(request: object) -> None:
        taken.set()

    vdpa = framework.dev_add("vd0", driver=None)
    device.reply = silent
    sender = threading.Thread(target=vdpa.set_status, args=(3,))
    sender.start()
    assert taken.wait(60)
    device.close()
    device.open(answering=False)
    request = device.receive()
    assert request.message == SetStatus(3)
    device.respond(DevResponse(request.request_id))
    sender.join()
    assert vdpa.get_status() == 3


def test_a_silent_device_breaks_and_sees_the_end_of_its_messages(
    framework: Framework, device: RawDevice
) -> None:
    framework.device("vd0").msg_timeout = 0.01
    vdpa = framework.dev_add("vd0", driver=None)
    device.reply = lambda request: None
    with pytest.raises(DeviceTimedOut):
        vdpa.set_status(1)
    assert device._thread is not None
    device._thread.join()  # it ends at the end of the messages
    assert call_errno(device.calls, Ioctl.DEV_GET_FEATURES, b"") == errno.EPERM
    framework.dev_del("vd0")


def test_a_bad_response_costs_no_connection(framework: Framework, device: RawDevice) -> None:
    vdpa = framework.dev_add("vd0", driver=None)
    device.respond(DevResponse(99))
    vdpa.set_status(1)
    assert vdpa.get_status() == 1


def test_a_flood_of_bad_responses_is_told_once(
    framework: Framework, device: RawDevice, caplog: pytest.LogCaptureFixture
) -> None:
    vdpa = framework.dev_add("vd0", driver=None)
    for _ in range(100):
        device.respond(DevResponse(99))
    vdpa.set_status(1)
    assert sum("response refused" in record.message for record in caplog.records) == 1


def test_a_malformed_call_ends_only_its_own_device(framework: Framework, control: Caller) -> None:
    hostile = RawDevice(control, blk_config("bad"))
    other = RawDevice(control, blk_config("good"))
    with pytest.raises((AssertionError, OSError)):
        hostile.calls.call(Ioctl.VQ_SETUP, b"short")
    assert unpack_u64(other.calls.call(Ioctl.DEV_GET_FEATURES)[0]) == 0
    hostile.close()
    other.close()


def test_a_forked_child_may_not_use_it(framework: Framework) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            framework.control()
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_destroy_tells_a_tap_with_no_lock_held() -> None:
    class Asking(Recorder):
        def on_close(self, device: str) -> None:
            found.append(list(made.devices))

    found: list[list[str]] = []
    with Framework(tap=Asking()) as made:
        control = Caller(made.control())
        device = RawDevice(control, blk_config())
        device.messages.shutdown(socket.SHUT_RDWR)
        # In one packet burst with the end of the device's program: DESTROY looks at it first.
        control.sock.settimeout(60)
        control.call(Ioctl.DESTROY_DEV, pack_name("vd0"))
        assert found == [["vd0"]]
        device.close()
        control.close()


def test_a_bind_that_comes_after_dev_del_finds_nothing(
    framework: Framework, device: RawDevice
) -> None:
    """It waited for the device's lock while dev_del held it."""
    framework.dev_add("vd0", driver="vhost_vdpa")
    asked, go_on = threading.Event(), threading.Event()

    def held(request: DevRequest) -> DevResponse:
        asked.set()
        assert go_on.wait(60)
        return ok(request)

    device.reply = held
    opening = threading.Thread(target=framework.bus.bind, args=("vd0", "virtio_vdpa"))
    opening.start()
    assert asked.wait(60)
    refused: list[BaseException] = []

    def late(call: Callable[[], object]) -> None:
        try:
            call()
        except DeviceNotFound as error:
            refused.append(error)

    late_calls = [
        threading.Thread(target=late, args=(lambda: framework.dev_del("vd0"),)),
        threading.Thread(target=late, args=(lambda: framework.dev_del("vd0"),)),
        threading.Thread(target=late, args=(lambda: framework.bus.bind("vd0", "vhost_vdpa"),)),
    ]
    for thread in late_calls:
        thread.start()
    device.reply = ok
    go_on.set()
    for thread in (opening, *late_calls):
        thread.join(60)
    assert len(refused) in (1, 2)  # the bind came first, or it did not
    assert framework.bus.devices == {}
    assert not framework.device("vd0").attached
    framework.dev_add("vd0", driver=None)


def test_bus_entries_wait_for_no_other_of_their_name(
    framework: Framework, device: RawDevice
) -> None:
    old = framework.dev_add("vd0", driver=None)
    framework.dev_del("vd0")
    framework.dev_add("vd0", driver=None)
    with pytest.raises(DeviceNotFound):
        framework.bus.remove(old)
    assert framework.bus.devices == {"vd0": None}


class TestListen:
    def test_other_programs_connect(self, framework: Framework, tmp_path: Path) -> None:
        path = tmp_path / "control"
        framework.listen(path)
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(os.fspath(path))
        caller = Caller(sock.detach())
        assert unpack_u64(caller.call(Ioctl.GET_API_VERSION)[0]) == 0
        caller.close()
        framework.close()
        assert not path.exists()

    def test_without_fds_connections_are_turned_away(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each of them once: one that waited on would keep the service thread spinning."""
        without = threading.Event()
        without.set()

        class Listening(socket.socket):
            def accept(self) -> tuple[socket.socket, object]:
                if without.is_set() and select.select([self], [], [], 0)[0]:
                    without.clear()
                    raise OSError(errno.EMFILE, "no fd")
                return super().accept()

        path = os.fspath(tmp_path / "control")
        with monkeypatch.context() as patch, Framework() as framework:
            patch.setattr(socket, "socket", Listening)
            framework.listen(path)
            first = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            first.settimeout(60)
            first.connect(path)
            assert first.recv(1) == b"", "turned away"
            first.close()
            second = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            second.connect(path)
            caller = Caller(second.detach())
            assert unpack_u64(caller.call(Ioctl.GET_API_VERSION)[0]) == 0
            caller.close()

    def test_a_path_that_is_taken_says_what_to_do(
        self, framework: Framework, tmp_path: Path
    ) -> None:
        path = tmp_path / "control"
        path.touch()
        with pytest.raises(OSError, match="remove it") as caught:
            framework.listen(path)
        assert caught.value.errno == errno.EADDRINUSE


class TestDevAddAttributes:
    @pytest.fixture
    def net(self, control: Caller, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawDevice]:
        monkeypatch.setattr(control_node, "has_capability", lambda pid, cap: True)
        features = BASE | NetFeature.MAC | NetFeature.MQ
        config = blk_config(
            "net0", queues=4, device_id=DeviceId.NET, features=features, config=bytes(12)
        )
        made = RawDevice(control, config)
        made.set_up_queues()
        yield made
        made.close()

    def test_mac_and_vq_pairs_show_in_config(self, framework: Framework, net: RawDevice) -> None:
        vdpa = framework.dev_add("net0", mac=b"\x52\x54\0\0\0\1", vq_pairs=2, driver=None)
        assert vdpa.get_config(0, 12) == b"\x52\x54\0\0\0\1\0\0\2\0\0\0"

    def test_features_are_a_subset(self, framework: Framework, net: RawDevice) -> None:
        with pytest.raises(OSError) as caught:
            framework.dev_add("net0", features=1 << 3, driver=None)
        assert caught.value.errno == errno.EINVAL
        vdpa = framework.dev_add("net0", features=BASE, driver=None)
        assert vdpa.get_device_features() == BASE

    @pytest.mark.parametrize(
        ("attributes", "expected"),
        [
            ({"mac": b"short"}, errno.EINVAL),
            ({"vq_pairs": 3}, errno.EINVAL),
            ({"vq_pairs": 0}, errno.EINVAL),
            ({"features": int(BASE), "mac": bytes(6)}, errno.EINVAL),
        ],
    )
    def test_what_the_device_lacks_is_einval(
        self, framework: Framework, net: RawDevice, attributes: dict[str, Any], expected: int
    ) -> None:
        with pytest.raises(OSError) as caught:
            framework.dev_add("net0", driver=None, **attributes)
        assert caught.value.errno == expected
        assert not framework.device("net0").attached

    @pytest.mark.parametrize("attributes", [{"mac": bytes(6)}, {"vq_pairs": 1}])
    def test_net_attributes_of_a_block_device_are_eopnotsupp(
        self, framework: Framework, device: RawDevice, attributes: dict[str, Any]
    ) -> None:
        with pytest.raises(OSError) as caught:
            framework.dev_add("vd0", driver=None, **attributes)
        assert caught.value.errno == errno.EOPNOTSUPP


class TestClose:
    def test_waits_for_no_device(self, control: Caller) -> None:
        framework = Framework(msg_timeout=0)
        caller = Caller(framework.control())
        device = RawDevice(caller, blk_config())
        device.set_up_queues()
        vdpa = framework.dev_add("vd0", driver=None)
        taken = threading.Event()
        device.reply = lambda request: taken.set()
        errors: list[BaseException] = []

        def send() -> None:
            try:
                vdpa.set_status(1)
            except DeviceTimedOut as error:
                errors.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        assert taken.wait(60)
        framework.close()
        framework.close()
        sender.join()
        assert len(errors) == 1
        device.close()
        caller.close()

    def test_an_open_vhost_vdpa_is_closed(self, framework: Framework, device: RawDevice) -> None:
        framework.dev_add("vd0", driver="vhost_vdpa")
        opened = framework.bus.vhost("vd0").open()
        with pytest.raises(DeviceBusy):
            framework.dev_del("vd0")
        framework.close()
        with pytest.raises(OSError) as caught:
            opened.get_status()
        assert caught.value.errno == errno.EBADF


def test_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"6\.12, 7\.2"):
        Framework("5.0")


def test_api_version_1_end_to_end() -> None:
    with Framework("7.2", bounce_size=1 << 20) as framework:
        control = Caller(framework.control())
        control.call(Ioctl.SET_API_VERSION, pack_u64(1))
        device = RawDevice(control, blk_config(ngroups=1, nas=1))
        device.set_up_queues()
        framework.dev_add("vd0", driver="vhost_vdpa")
        vhost = framework.bus.vhost("vd0").open()
        vhost.set_group_asid(0, 0)
        vhost.close()
        device.close()
        control.close()
