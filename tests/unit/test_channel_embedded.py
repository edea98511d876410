"""The device's end of the embedded channel against a scripted framework."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.held import nothing_left
from vduse.channel.base import EXT_CALLFD, EXT_INFLIGHT, EXT_KICKFD, EXT_LOG
from vduse.channel.embedded import EmbeddedChannel, EmbeddedControl, connect, inherited
from vduse.channel.packet import Answer, Call, PacketError, close_fds, send_packet
from vduse.channel.server import CallServer
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    ExtCall,
    Ioctl,
    IotlbEntry,
    IovaInfo,
    IovaUmem,
    SetStatus,
    UpdateIotlb,
    VqConfig,
    VqEventfd,
    VqInfo,
    pack_name,
    pack_u32,
    pack_u64,
)

SEQPACKET = socket.SOCK_SEQPACKET
Result = tuple[int, bytes, list[int]]
Reply = Callable[[bytes, list[int]], Result]


class Script:
    """Answers calls as told, and keeps what was asked."""

    def __init__(self) -> None:
        self.replies: dict[int, Reply] = {}
        self.calls: list[tuple[int, bytes, int]] = []

    def ioctl(self, nr: int, payload: bytes, fds: list[int]) -> Result:
        self.calls.append((nr, payload, len(fds)))
        reply = self.replies.get(nr)
        return reply(payload, fds) if reply is not None else (0, b"", [])


def serve(sock: socket.socket, script: Script) -> threading.Thread:
    """Serves calls on a thread until the other end closes."""

    def run() -> None:
        server = CallServer(sock, script)
        sock.settimeout(60)
        while sock.recv(1, socket.MSG_PEEK) and server.serve():
            pass
        server.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def control(script: Script) -> Iterator[EmbeddedControl]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    thread = serve(ours, script)
    control = EmbeddedControl(theirs.detach())
    yield control
    control.close()
    thread.join()


@pytest.fixture
def ends(script: Script) -> Iterator[tuple[EmbeddedChannel, socket.socket]]:
    """A channel, and the framework's end of its message socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    calls, their_calls = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    thread = serve(calls, script)
    channel = EmbeddedChannel(theirs.detach(), their_calls.detach())
    with ours:
        yield channel, ours
    channel.close()
    thread.join()


@pytest.fixture
def channel(ends: tuple[EmbeddedChannel, socket.socket]) -> EmbeddedChannel:
    return ends[0]


def null_fd() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def test_control_calls(control: EmbeddedControl, script: Script) -> None:
    script.replies[Ioctl.GET_API_VERSION] = lambda _p, _f: (0, pack_u64(1), [])
    config = DevConfig("disk0", 1, 2, 3, 4, 4096, b"config")
    assert control.get_api_version() == 1
    control.set_api_version(0)
    control.create_dev(config)
    control.destroy_dev("disk0")
    assert script.calls == [
        (Ioctl.GET_API_VERSION, b"", 0),
        (Ioctl.SET_API_VERSION, pack_u64(0), 0),
        (Ioctl.CREATE_DEV, config.pack(), 0),
        (Ioctl.DESTROY_DEV, pack_name("disk0"), 0),
    ]


def test_minus_errno_is_oserror(control: EmbeddedControl, script: Script) -> None:
    script.replies[Ioctl.CREATE_DEV] = lambda _p, _f: (-errno.EEXIST, b"", [])
    with pytest.raises(FileExistsError):
        control.create_dev(DevConfig("disk0", 1, 2, 3, 4, 4096))


def test_open_takes_two_fds(control: EmbeddedControl, script: Script) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    calls, their_calls = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    script.replies[ExtCall.OPEN] = lambda _p, _f: (0, b"", [theirs.detach(), their_calls.detach()])
    with ours, calls:
        channel = control.open("disk0")
        ours.send(DevRequest(1, SetStatus(1)).pack())
        assert channel.receive() == DevRequest(1, SetStatus(1))
        channel.close()
    assert script.calls == [(ExtCall.OPEN, pack_name("disk0"), 0)]


@pytest.mark.parametrize("count", [0, 1])
def test_open_without_its_fds_is_refused(
    control: EmbeddedControl, script: Script, count: int
) -> None:
    script.replies[ExtCall.OPEN] = lambda _p, _f: (0, b"", [null_fd() for _ in range(count)])
    refusal = f"{count} fds in the answer, expected 2"
    with nothing_left(), pytest.raises(PacketError, match=refusal):
        control.open("disk0")


def test_device_calls(channel: EmbeddedChannel, script: Script) -> None:
    info = VqInfo(1, 8, 1, 2, 3, ready=True)
    script.replies[Ioctl.DEV_GET_FEATURES] = lambda _p, _f: (0, pack_u64(9), [])
    script.replies[Ioctl.VQ_GET_INFO] = lambda _p, _f: (0, info.pack(), [])
    region = IovaInfo(0, 4095, 1)
    script.replies[Ioctl.IOTLB_GET_INFO] = lambda _p, _f: (0, region.pack(), [])
    umem = IovaUmem(4096, 0, 4096)
    assert channel.dev_get_features() == 9
    channel.dev_set_config(4, b"abc")
    channel.dev_inject_config_irq()
    channel.vq_setup(1, 128)
    assert channel.vq_get_info(1) == info
    channel.vq_inject_irq(2)
    assert channel.iotlb_get_info(0, 1) == region
    channel.iotlb_reg_umem(umem)
    channel.iotlb_dereg_umem(umem)
    assert [(nr, payload) for nr, payload, _ in script.calls] == [
        (Ioctl.DEV_GET_FEATURES, b""),
        (Ioctl.DEV_SET_CONFIG, b"\4\0\0\0\3\0\0\0abc"),
        (Ioctl.DEV_INJECT_CONFIG_IRQ, b""),
        (Ioctl.VQ_SETUP, VqConfig(1, 128).pack()),
        (Ioctl.VQ_GET_INFO, VqInfo(1).pack()),
        (Ioctl.VQ_INJECT_IRQ, pack_u32(2)),
        (Ioctl.IOTLB_GET_INFO, IovaInfo(0, 1).pack()),
        (Ioctl.IOTLB_REG_UMEM, umem.pack()),
        (Ioctl.IOTLB_DEREG_UMEM, umem.pack()),
    ]


def test_kickfd_travels_beside_its_struct(channel: EmbeddedChannel, script: Script) -> None:
    fd = null_fd()
    channel.vq_setup_kickfd(0, fd)
    channel.vq_setup_kickfd(0, -1)
    os.close(fd)
    assert script.calls == [
        (Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, fd).pack(), 1),
        (Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, -1).pack(), 0),
    ]


def test_calls_that_return_an_fd(channel: EmbeddedChannel, script: Script) -> None:
    entry = IotlbEntry(0, 0, 4095, 3)
    script.replies[Ioctl.IOTLB_GET_FD] = lambda _p, _f: (0, entry.pack(), [null_fd()])
    script.replies[ExtCall.VQ_GET_CALLFD] = lambda _p, _f: (0, b"", [null_fd()])
    script.replies[ExtCall.GET_INFLIGHT_FD] = lambda _p, _f: (0, b"", [null_fd()])
    script.replies[ExtCall.VQ_GET_KICKFD] = lambda _p, _f: (0, b"", [null_fd()])
    assert channel.extensions == {EXT_CALLFD, EXT_INFLIGHT, EXT_KICKFD, EXT_LOG}
    got, fd = channel.iotlb_get_fd(1, 2)
    assert got == entry
    kick = channel.vq_get_kickfd(5)
    assert kick is not None
    close_fds([fd, channel.vq_get_callfd(3), channel.get_inflight_fd(4096, 0, fresh=True), kick])
    assert [payload for _, payload, _ in script.calls] == [
        IotlbEntry(start=1, last=2).pack(),
        pack_u32(5),
        pack_u32(3),
        pack_u64(4096),
    ]


def test_a_driver_without_a_kick_fd_of_its_own(channel: EmbeddedChannel, script: Script) -> None:
    script.replies[ExtCall.VQ_GET_KICKFD] = lambda _p, _f: (-errno.ENOENT, b"", [])
    assert channel.vq_get_kickfd(0) is None


def test_truncated_answers_leave_no_fds(channel: EmbeddedChannel, script: Script) -> None:
    for nr in (Ioctl.DEV_GET_FEATURES, Ioctl.VQ_GET_INFO, Ioctl.IOTLB_GET_INFO):
        script.replies[nr] = lambda _p, _f: (0, b"x", [])
    script.replies[Ioctl.IOTLB_GET_FD] = lambda _p, _f: (0, b"x", [null_fd()])
    for call in (
        channel.dev_get_features,
        lambda: channel.vq_get_info(0),
        lambda: channel.iotlb_get_info(0, 1),
        lambda: channel.iotlb_get_fd(0, 1),
    ):
        with nothing_left(), pytest.raises(PacketError, match="1 bytes, expected"):
            call()


def test_answer_with_another_seq_ends_the_connection() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    control = EmbeddedControl(theirs.detach())

    def answer() -> None:
        call = Call.unpack(ours.recv(8192))
        send_packet(ours, Answer(0, call.seq + 1, b"").pack())

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(OSError, match=r"Protocol error|Connection reset"):
        control.set_api_version(0)
    thread.join()
    control.close()
    ours.close()


def test_messages_and_answers(ends: tuple[EmbeddedChannel, socket.socket]) -> None:
    channel, framework = ends
    assert channel.receive() is None
    request = DevRequest(7, UpdateIotlb(0, 2**64 - 1))
    framework.send(request.pack())
    assert channel.receive() == request
    channel.respond(DevResponse(7))
    assert DevResponse.unpack(framework.recv(8192)) == DevResponse(7)


def test_framework_gone_is_a_connection_error(
    ends: tuple[EmbeddedChannel, socket.socket],
) -> None:
    channel, framework = ends
    framework.close()
    with pytest.raises(ConnectionError):
        channel.receive()
    with pytest.raises(ConnectionError):
        channel.respond(DevResponse(1))


def test_malformed_messages_are_connection_errors(
    ends: tuple[EmbeddedChannel, socket.socket],
) -> None:
    channel, framework = ends
    framework.send(b"short")
    with pytest.raises(PacketError, match="vduse_dev_request: 5 bytes, expected 152"):
        channel.receive()
    fd = null_fd()
    with nothing_left(), pytest.raises(PacketError, match="message with fds"):
        send_packet(framework, DevRequest(1, SetStatus(0)).pack(), [fd])
        channel.receive()
    os.close(fd)


def test_answers_nobody_reads_are_a_connection_error(channel: EmbeddedChannel) -> None:
    def respond_for_ever() -> None:
        while True:
            channel.respond(DevResponse(1))

    with pytest.raises(PacketError, match="does not read answers"):
        respond_for_ever()


def test_connect_by_path(tmp_path: os.PathLike[str], script: Script) -> None:
    path = os.fspath(tmp_path) + "/control"
    with socket.socket(socket.AF_UNIX, SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        control = connect(path)
        ours, _ = listener.accept()
    thread = serve(ours, script)
    control.set_api_version(0)
    control.close()
    thread.join()
    with nothing_left(), pytest.raises(FileNotFoundError):
        connect(path + "-missing")


def test_inherited_refuses_what_is_no_control_socket() -> None:
    stream, other = socket.socketpair()
    with stream, other, pytest.raises(OSError, match="no SOCK_SEQPACKET") as raised:
        inherited(stream.fileno())
    assert raised.value.errno == errno.EPROTOTYPE
    with pytest.raises(OSError, match="Bad file descriptor"):
        inherited(2**20)


def test_inherited_socket_is_not_passed_on(script: Script) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    thread = serve(ours, script)
    fd = theirs.detach()
    os.set_inheritable(fd, True)
    control = inherited(fd)
    assert not os.get_inheritable(fd)
    control.set_api_version(0)
    control.close()
    thread.join()
