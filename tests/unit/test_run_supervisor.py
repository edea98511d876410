"""The supervisor: system calls in, the framework's own answers out."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.raw_device import blk_config, wait_packet
from tests.unit.run_fakes import FakeCall, FakeFile, FakeSupervised
from vduse.bus.iotlb import Mapping, SharedFile
from vduse.channel.packet import send_packet
from vduse.channel.tap import Called, Recorder
from vduse.control.abi import (
    ACCESS_RW,
    DevRequest,
    DevResponse,
    Ioctl,
    IotlbEntry,
    SetStatus,
    VqConfig,
    VqEventfd,
    pack_name,
    pack_u32,
    pack_u64,
    unpack_u64,
)
from vduse.control.features import DeviceId, Feature
from vduse.framework import Framework, control_node
from vduse.run import supervisor as module
from vduse.run.supervisor import Supervisor

CONTROL = "/dev/vduse/control"
NODE = "/dev/vduse/vd0"


class Stage:
    """A framework, a supervisor, and a program that the test plays."""

    def __init__(self, tap: Recorder | None = None) -> None:
        self.framework = Framework(bounce_size=1 << 20, tap=tap)
        self.program = FakeSupervised()
        self.set_up: list[str] = []
        self.is_set_up = threading.Event()
        self.supervisor = Supervisor(
            self.framework.nodes,
            self.program,  # type: ignore[arg-type]
            self._on_set_up,
        )
        self.framework.nodes.service.add(self.supervisor)

    def _on_set_up(self, device: Any) -> None:
        self.set_up.append(device.name)
        self.is_set_up.set()

    def device(self, queues: int = 1) -> FakeFile:
        """A device, created and opened."""
        control = self.program.open(CONTROL)
        control.ioctl(Ioctl.CREATE_DEV, blk_config(queues=queues).pack())
        control.close()
        return self.program.open(NODE)

    def close(self) -> None:
        self.framework.close()
        self.program.die()

    def on_service(self) -> None:
        """What the service thread has to do is done after this."""
        done = threading.Event()
        self.framework.nodes.service.run(done.set)
        assert done.wait(60)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def test_a_device_is_created_set_up_and_driven(stage: Stage) -> None:
    device = stage.device(queues=2)
    device.ioctl(Ioctl.VQ_SETUP, VqConfig(0, 64).pack())
    assert stage.set_up == []
    device.ioctl(Ioctl.VQ_SETUP, VqConfig(1, 64).pack())
    assert stage.is_set_up.wait(60)
    vdpa = stage.framework.dev_add("vd0", driver=None)
    driver = threading.Thread(target=vdpa.set_status, args=(1,))
    driver.start()
    packet = wait_packet(device.sock)
    assert packet is not None
    request = DevRequest.unpack(packet.data)
    assert request.message == SetStatus(1)
    send_packet(device.sock, DevResponse(request.request_id).pack())
    driver.join()
    assert vdpa.get_status() == 1


def test_a_device_without_virtqueues_is_set_up_once_it_is_open(stage: Stage) -> None:
    stage.device(queues=0)
    assert stage.is_set_up.wait(60)


def test_a_device_that_an_earlier_program_set_up_is_so_once_it_is_open(stage: Stage) -> None:
    device = stage.device()
    device.ioctl(Ioctl.VQ_SETUP, VqConfig(0, 64).pack())
    assert stage.is_set_up.wait(60)
    device.close()
    stage.on_service()
    stage.is_set_up.clear()
    stage.program.open(NODE)
    assert stage.is_set_up.wait(60)


def test_api_version_is_of_one_open_control_node(stage: Stage) -> None:
    one, other = stage.program.open(CONTROL), stage.program.open(CONTROL)
    assert unpack_u64(one.ioctl(Ioctl.GET_API_VERSION).answer) == 0
    assert errno_of(lambda: other.ioctl(Ioctl.SET_API_VERSION, pack_u64(1))) == errno.EINVAL
    assert one.node[0] != other.node[0]


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC])
@pytest.mark.parametrize("path", [CONTROL, NODE])
def test_open_flags_are_those_of_the_program(stage: Stage, path: str, flags: int) -> None:
    stage.device().close()
    call = stage.program.make(FakeCall("open", path, flags))
    status = fcntl.fcntl(call.fd, fcntl.F_GETFL)
    os.close(call.fd)
    assert bool(status & os.O_NONBLOCK) == bool(flags & os.O_NONBLOCK)
    assert call.cloexec == bool(flags & os.O_CLOEXEC)


def test_open_refuses_what_is_not_there_and_what_is_open(stage: Stage) -> None:
    assert errno_of(lambda: stage.program.open(NODE)) == errno.ENOENT
    device = stage.device()
    assert errno_of(lambda: stage.program.open(NODE)) == errno.EBUSY
    device.close()
    stage.program.open(NODE).close()


def test_stat_finds_devices_as_they_come(stage: Stage) -> None:
    assert errno_of(lambda: stage.program.stat(NODE)) == errno.ENOENT
    stage.device()
    assert stage.program.stat(NODE)[0] & 0o777 == 0o600


def test_the_last_close_is_the_nodes(stage: Stage) -> None:
    device = stage.device()
    copy = device.sock.dup()
    device.close()
    stage.on_service()
    assert stage.framework.device("vd0").connected
    copy.close()
    stage.program.open(NODE)
    assert len(stage.program.nodes) == 1  # no trace of the first one, nor of the control node


def test_destroy_is_busy_while_it_is_open(stage: Stage) -> None:
    device = stage.device()
    control = stage.program.open(CONTROL)
    destroy = lambda: control.ioctl(Ioctl.DESTROY_DEV, pack_name("vd0"))  # noqa: E731
    assert errno_of(destroy) == errno.EBUSY
    device.close()
    destroy()
    assert stage.framework.devices == {}


def test_kick_eventfd_is_the_callers(stage: Stage) -> None:
    device = stage.device()
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    device.ioctl(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, kick).pack(), kick=kick)
    vq = stage.framework.device("vd0").vq(0)
    vq.ready = True
    vq.kick()
    assert os.eventfd_read(kick) == 1
    os.close(kick)


@pytest.mark.parametrize("code", [errno.EBADF, errno.EINVAL])
def test_kick_eventfd_that_is_none(stage: Stage, code: int) -> None:
    device = stage.device()
    setup = VqEventfd(0, 77).pack()
    refused = OSError(code, "no eventfd")
    assert errno_of(lambda: device.ioctl(Ioctl.VQ_SETUP_KICKFD, setup, kick=refused)) == code


def test_no_eventfd_is_asked_for_where_none_is_named(stage: Stage) -> None:
    stage.device().ioctl(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, -1).pack())


def test_iotlb_fd_comes_with_its_entry(stage: Stage) -> None:
    device = stage.device()
    device.ioctl(Ioctl.VQ_SETUP, VqConfig(0, 64).pack())
    stage.framework.dev_add("vd0", driver=None)
    domain = stage.framework.device("vd0").domain
    assert domain is not None
    memory = os.memfd_create("memory")
    domain.set_map([Mapping(0x1000, 0x1FFF, SharedFile(memory), 0x3000, ACCESS_RW)])
    found = device.ioctl(Ioctl.IOTLB_GET_FD, IotlbEntry(last=(1 << 64) - 1).pack())
    assert IotlbEntry.unpack(found.answer) == IotlbEntry(0x3000, 0x1000, 0x1FFF, ACCESS_RW)
    assert os.fstat(found.fd).st_ino == os.fstat(memory).st_ino
    assert not found.cloexec
    os.close(found.fd)
    os.close(memory)


def test_struct_that_is_none_is_einval_and_memory_that_is_none_efault(stage: Stage) -> None:
    device = stage.device()
    assert errno_of(lambda: device.ioctl(Ioctl.VQ_SETUP, b"\1")) == errno.EINVAL
    assert errno_of(lambda: device.ioctl(Ioctl.VQ_SETUP)) == errno.EFAULT


def test_unknown_ioctls(stage: Stage) -> None:
    device = stage.device()
    control = stage.program.open(CONTROL)
    assert errno_of(lambda: device.ioctl(0x8199)) == errno.ENOTTY
    assert errno_of(lambda: control.ioctl(0x8199)) == errno.EINVAL


def test_call_on_a_node_that_is_closed_meanwhile(stage: Stage) -> None:
    call = FakeCall("ioctl", key=4711, nr=Ioctl.DEV_GET_FEATURES)
    assert errno_of(lambda: stage.program.make(call)) == errno.ENODEV


def test_nodes_without_end_are_emfile(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NODES", 3)
    opened = [stage.program.open(CONTROL) for _ in range(3)]
    assert errno_of(lambda: stage.program.open(CONTROL)) == errno.EMFILE
    opened.pop().close()
    stage.on_service()
    stage.program.open(CONTROL)


def test_nodes_take_no_more_than_a_quarter_of_the_fds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.resource, "getrlimit", lambda which: (8, 8))
    for _ in range(2):
        stage.program.open(CONTROL)
    assert errno_of(lambda: stage.program.open(CONTROL)) == errno.EMFILE


def test_caller_is_who_makes_the_call(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def has_capability(pid: int, _capability: int) -> bool:
        asked.append(pid)
        return False

    monkeypatch.setattr(control_node, "has_capability", has_capability)
    features = int(Feature.VERSION_1 | Feature.ACCESS_PLATFORM)
    config = blk_config(device_id=int(DeviceId.NET), features=features, config=bytes(12))
    control = stage.program.open(CONTROL)
    assert errno_of(lambda: control.ioctl(Ioctl.CREATE_DEV, config.pack())) == errno.EPERM
    assert asked == [os.getpid()]


def test_irqs_are_answered_at_once_but_for_a_tap(stage: Stage) -> None:
    assert stage.device().node[1] is stage.framework.device("vd0").irqs
    recorder = Recorder()
    tapped = Stage(recorder)
    try:
        device = tapped.device()
        assert device.node[1] is None
        assert errno_of(lambda: device.ioctl(Ioctl.VQ_INJECT_IRQ, pack_u32(0))) == errno.EINVAL
        calls = [record for record in recorder.records if isinstance(record, Called)]
        assert [(call.device, call.nr, call.result) for call in calls] == [
            ("", Ioctl.CREATE_DEV, 0),
            ("vd0", Ioctl.VQ_INJECT_IRQ, -errno.EINVAL),
        ]
    finally:
        tapped.close()


def test_what_is_written_to_a_control_node_is_lost(stage: Stage) -> None:
    control = stage.program.open(CONTROL)
    for _ in range(100):
        control.sock.send(b"x")
    assert unpack_u64(control.ioctl(Ioctl.GET_API_VERSION).answer) == 0


def test_a_fault_of_ours_is_eio_and_nothing_else(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a fault")

    device = stage.device()
    with monkeypatch.context() as patch:
        patch.setattr(module, "told_call", fails)
        assert errno_of(lambda: device.ioctl(Ioctl.DEV_GET_FEATURES)) == errno.EIO
    device.ioctl(Ioctl.DEV_GET_FEATURES)


def test_the_end_of_the_program_closes_its_nodes(stage: Stage) -> None:
    device = stage.device()
    device.close()
    stage.program.ended = True
    os.eventfd_write(stage.program.fileno(), 1)
    assert stage.supervisor.closed.wait(60)
    assert stage.program.closed.is_set()
    assert not stage.framework.device("vd0").connected


def test_a_broken_device_hangs_up(stage: Stage) -> None:
    device = stage.device()
    stage.framework.device("vd0").messages.break_device("a test")
    poll = select.poll()
    poll.register(device.sock, select.POLLIN)
    assert poll.poll(60_000)
    assert device.sock.recv(1) == b""
    assert errno_of(lambda: device.ioctl(Ioctl.DEV_GET_FEATURES)) == errno.EPERM


def test_garbage_on_the_message_socket_closes_this_node_alone(stage: Stage) -> None:
    device, control = stage.device(), stage.program.open(CONTROL)
    device.sock.send(bytes(9000))
    stage.on_service()
    assert device.sock.recv(1) == b""
    assert unpack_u64(control.ioctl(Ioctl.GET_API_VERSION).answer) == 0
    device.close()
    stage.program.open(NODE)
