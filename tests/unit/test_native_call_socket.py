"""The native call socket: docs/channel.md, "Call sockets", as Python sees it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from vduse._native import CallSocket

HEADER = struct.Struct("=iI")


@pytest.fixture
def ends() -> Iterator[tuple[CallSocket, socket.socket]]:
    """A call socket, and the framework's end of it."""
    device, framework = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    framework.settimeout(60)
    with framework:
        call_socket = CallSocket(device.detach())
        yield call_socket, framework
        call_socket.close()


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Runs something beside the test, which waits for it at its end."""
    with ExitStack() as stack:

        def start(target: Callable[[], object]) -> threading.Thread:
            thread = threading.Thread(target=target)
            thread.start()
            stack.callback(thread.join)
            return thread

        yield start


def test_exchange_carries_payload_and_fds_both_ways(
    ends: tuple[CallSocket, socket.socket],
    in_thread: Callable[[Callable[[], object]], threading.Thread],
) -> None:
    call_socket, framework = ends
    seen: list[tuple[int, int, bytes, int]] = []

    def serve() -> None:
        data, fds, _flags, _address = socket.recv_fds(framework, 8192, 2)
        nr, seq = HEADER.unpack_from(data)
        seen.append((nr, seq, data[HEADER.size :], len(fds)))
        socket.send_fds(framework, [HEADER.pack(3, seq) + b"answer"], fds)
        for fd in fds:
            os.close(fd)

    in_thread(serve)  # answered from another thread: the call waits with the GIL released
    reader, writer = os.pipe()
    result, payload, fds = call_socket.call(0x0100_8111, b"question", [writer])
    assert (result, payload) == (3, b"answer")
    assert seen == [(0x0100_8111, 1, b"question", 1)]
    assert fcntl.fcntl(fds[0], fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    os.write(fds[0], b"x")
    assert os.read(reader, 1) == b"x"
    for fd in [reader, writer, *fds]:
        os.close(fd)


def test_errno_is_a_result_and_not_an_exception(ends: tuple[CallSocket, socket.socket]) -> None:
    call_socket, framework = ends
    framework.send(HEADER.pack(-errno.EPERM, 1))
    assert call_socket.call(7) == (-errno.EPERM, b"", [])
    framework.send(HEADER.pack(0, 2))
    assert call_socket.call(7, payload=b"", fds=()) == (0, b"", [])


def test_framework_gone_is_connection_reset(ends: tuple[CallSocket, socket.socket]) -> None:
    call_socket, framework = ends
    framework.close()
    for _ in range(2):
        with pytest.raises(ConnectionResetError) as failure:
            call_socket.call(7)
        assert failure.value.errno == errno.ECONNRESET
        assert failure.value.strerror == os.strerror(errno.ECONNRESET)


def test_wrong_answer_is_a_protocol_error_and_the_end(
    ends: tuple[CallSocket, socket.socket],
) -> None:
    call_socket, framework = ends
    framework.send(HEADER.pack(0, 99))
    with pytest.raises(OSError) as failure:
        call_socket.call(7)
    assert failure.value.errno == errno.EPROTO
    with pytest.raises(ConnectionResetError):
        call_socket.call(7)


def test_use_after_close_is_a_value_error(ends: tuple[CallSocket, socket.socket]) -> None:
    call_socket, framework = ends
    assert os.get_inheritable(call_socket.fileno()) is False
    call_socket.close()
    call_socket.close()
    with pytest.raises(ValueError, match="call socket is closed"):
        call_socket.call(7)
    with pytest.raises(ValueError, match="call socket is closed"):
        call_socket.fileno()
    assert framework.recv(1) == b""


def test_close_ends_a_call_that_waits(
    ends: tuple[CallSocket, socket.socket],
    in_thread: Callable[[Callable[[], object]], threading.Thread],
) -> None:
    call_socket, framework = ends
    failures: list[BaseException] = []

    def call() -> None:
        try:
            call_socket.call(7)
        except OSError as error:
            failures.append(error)

    waiting = in_thread(call)
    framework.recv(8192)  # the call is under way
    call_socket.close()
    waiting.join()
    assert [type(failure) for failure in failures] == [ConnectionResetError]


@pytest.mark.parametrize("fd", [-1, 1 << 20])
def test_fd_that_is_none_is_refused(ends: tuple[CallSocket, socket.socket], fd: int) -> None:
    call_socket, _framework = ends
    for use in (lambda: CallSocket(fd), lambda: call_socket.call(7, b"", [fd])):
        with pytest.raises(OSError) as failure:
            use()
        assert failure.value.errno == errno.EBADF


def test_what_does_not_fit_is_refused_and_the_socket_lives(
    ends: tuple[CallSocket, socket.socket],
) -> None:
    call_socket, framework = ends
    for payload, fds in ((bytes(8185), []), (b"", [framework.fileno()] * 3)):
        with pytest.raises(OSError) as failure:
            call_socket.call(7, payload, fds)
        assert failure.value.errno == errno.EMSGSIZE
    framework.send(HEADER.pack(0, 1))
    assert call_socket.call(7, bytes(8184)) == (0, b"", [])


def test_a_forked_child_can_neither_use_nor_end_it(ends: tuple[CallSocket, socket.socket]) -> None:
    call_socket, framework = ends
    uses = [lambda: call_socket.call(1), call_socket.fileno, call_socket.close]
    child = os.fork()
    if child == 0:
        refused = 0
        for use in uses:
            try:
                use()
            except RuntimeError:
                refused += 1
        os._exit(refused)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == len(uses)
    framework.setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing came, and it is still connected
        framework.recv(8192)
