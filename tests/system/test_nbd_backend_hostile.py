"""The backend ``nbd`` on servers that are broken or hostile: they harm their own disk at most."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.disks import disk_on
from tests.system.nbd_servers import listener
from tests.system.test_nbd_backend import BLOCK, SIZE
from vduse.backends.spec import open_backend
from vduse.bus.disk import Disk
from vduse.channel.embedded import inherited
from vduse.control.nbd import TransmissionFlag
from vduse.devices.blk import BlkDevice
from vduse.exports.nbd.export import Export
from vduse.exports.nbd.handshake import Handshake
from vduse.framework.framework import Framework

#: Without SEND_FLUSH: the end of a disk, which flushes, needs no server that answers.
FLAGS = TransmissionFlag.HAS_FLAGS


@contextmanager
def server(folder: Path, serve: Callable[[socket.socket], None]) -> Iterator[tuple[str, list[int]]]:
    """A server that shakes hands as it should and then leaves connections to ``serve``, one after
    another; its spelling, and a list with an element a connection."""
    own, spec = listener(folder)
    made: list[int] = []
    connections: list[socket.socket] = []

    def run() -> None:
        while True:
            try:
                connection, _ = own.accept()
            except OSError:
                return
            # The client may have given it up.
            with connection, suppress(ConnectionError):
                made.append(len(made))
                connections.append(connection)
                shake = Handshake(lambda: [Export("", SIZE, FLAGS)])
                while shake.outcome is None:
                    connection.sendall(shake.take_output())
                    shake.receive(connection.recv(shake.wanted))
                connection.sendall(shake.take_output())
                serve(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield spec, made
    finally:
        own.shutdown(socket.SHUT_RDWR)
        own.close()
        for connection in connections:
            with contextlib.suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def hang_up(connection: socket.socket) -> None:
    """Takes a request, and no more."""
    connection.recv(28)


def talk_nonsense(connection: socket.socket) -> None:
    """Answers with what is no reply."""
    if connection.recv(28):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def answer_others(connection: socket.socket) -> None:
    """Answers a request that nobody made."""
    if connection.recv(28):
        connection.sendall(bytes.fromhex("668e33ef00010000") + bytes(12))


@pytest.mark.parametrize("serve", [hang_up, talk_nonsense, answer_others])
def test_a_request_that_every_server_dies_of_fails_in_the_end(
    serve: Callable[[socket.socket], None], tmp_path: Path
) -> None:
    with server(tmp_path, serve) as (spec, made):
        with disk_on(open_backend(f"{spec},reconnect-delay=2s")) as disk:
            with pytest.raises(OSError) as error:
                disk.pread(BLOCK, 0)
            assert error.value.errno == errno.EIO
        assert len(made) > 1, "it was sent again at least once"


def test_a_reset_does_not_wait_for_a_server_that_is_silent(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass

    with server(tmp_path, serve) as (spec, _made), disk_on(open_backend(spec)) as disk:
        ended: list[int] = []

        def read() -> None:
            try:
                disk.pread(BLOCK, 0)
            except OSError as error:
                ended.append(error.errno or 0)

        waiting = threading.Thread(target=read)
        waiting.start()
    # The disk went with its request: taking it away is what `disk_on` does at its end.
    waiting.join()
    assert len(ended) == 1


def test_what_a_reset_left_at_a_slow_server_comes_before_the_next_drivers_requests(
    tmp_path: Path,
) -> None:
    held, again, overtaken = threading.Event(), threading.Event(), list[bool]()
    written: list[bytes] = []

    def take_write(connection: socket.socket) -> bytes:
        header = connection.recv(28, socket.MSG_WAITALL)
        written.append(connection.recv(BLOCK, socket.MSG_WAITALL))
        return header[8:16]

    def answer(connection: socket.socket, cookie: bytes) -> None:
        connection.sendall(bytes.fromhex("6744669800000000") + cookie)

    def serve(connection: socket.socket) -> None:
        first = take_write(connection)
        held.set()
        again.wait(60)
        # Nothing may come; what does not come needs this long.
        overtaken.append(bool(select.select([connection], [], [], 0.5)[0]))
        answer(connection, first)
        answer(connection, take_write(connection))
        connection.recv(1)  # until the client goes

    def write(disk: Disk, byte: bytes) -> None:
        disk.pwrite(byte * BLOCK, 0)

    def write_in_vain(disk: Disk) -> None:
        with contextlib.suppress(OSError):
            write(disk, b"1")

    with server(tmp_path, serve) as (spec, _made), Framework() as framework:
        backend = open_backend(spec)
        device, control = BlkDevice("disk0", backend, queues=1), inherited(framework.control())
        device.start(control)
        framework.dev_add("disk0", driver="virtio_vdpa")
        lost = threading.Thread(target=write_in_vain, args=(framework.disk("disk0"),))
        lost.start()
        assert held.wait(60)
        framework.dev_del("disk0")  # resets it
        lost.join()
        framework.dev_add("disk0", driver="virtio_vdpa")
        following = threading.Thread(target=write, args=(framework.disk("disk0"), b"2"))
        following.start()
        again.set()
        following.join()
        framework.dev_del("disk0")
        device.close()
        control.close()
        backend.close()
    assert overtaken == [False]
    assert written == [b"1" * BLOCK, b"2" * BLOCK]
