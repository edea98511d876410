"""A device's program that speaks raw packets: nothing of the device side's code is in it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from vduse.channel.packet import Answer, Call, Packet, receive_packet, send_packet
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    ExtCall,
    Ioctl,
    Message,
    RequestResult,
    VqConfig,
    pack_name,
)
from vduse.control.features import DeviceId, Feature

FEATURES = Feature.VERSION_1 | Feature.ACCESS_PLATFORM
Reply = Callable[[DevRequest], DevResponse | None]


def blk_config(name: str = "vd0", *, queues: int = 1, **changes: Any) -> DevConfig:
    """What CREATE_DEV takes, with ``changes``."""
    fields: dict[str, Any] = {
        "name": name,
        "vendor_id": 0,
        "device_id": int(DeviceId.BLOCK),
        "features": int(FEATURES),
        "vq_num": queues,
        "vq_align": 4096,
        "config": (2048).to_bytes(8, "little") + bytes(52),
    }
    return DevConfig(**{**fields, **changes})


class Caller:
    """One call socket."""

    def __init__(self, fd: int) -> None:
        self.sock = socket.socket(fileno=fd)

    def call(
        self, nr: int, payload: bytes = b"", fds: tuple[int, ...] = ()
    ) -> tuple[bytes, tuple[int, ...]]:
        """Answer bytes and fds. OSError with the answer's errno."""
        send_packet(self.sock, Call(nr, 7, payload).pack(), fds)
        packet = wait_packet(self.sock)
        assert packet is not None
        answer = Answer.unpack(packet.data)
        assert answer.seq == 7
        if answer.result < 0:
            raise OSError(-answer.result, os.strerror(-answer.result))
        return answer.payload, packet.fds

    def close(self) -> None:
        self.sock.close()


def wait_packet(sock: socket.socket) -> Packet | None:
    """The next packet, or None at the end."""
    sock.recv(1, socket.MSG_PEEK)
    return receive_packet(sock)


def ok(request: DevRequest) -> DevResponse:
    """The answer of a device that agrees with everything."""
    return DevResponse(request.request_id)


def refuse(request: DevRequest) -> DevResponse:
    """The answer of a device that refuses everything."""
    return DevResponse(request.request_id, RequestResult.FAILED)


class RawDevice:
    """A device, created and opened, with a thread that answers its messages by ``reply``
    (None: no answer)."""

    def __init__(self, control: Caller, config: DevConfig, reply: Reply = ok) -> None:
        self.control = control
        self.config = config
        self.reply = reply
        self.seen: list[Message] = []
        control.call(Ioctl.CREATE_DEV, config.pack())
        self.open()

    def open(self, *, answering: bool = True) -> None:
        """Opens the node (again)."""
        _, (messages, calls) = self.control.call(ExtCall.OPEN, pack_name(self.config.name))
        self.messages = socket.socket(fileno=messages)
        self.calls = Caller(calls)
        self._thread: threading.Thread | None = None
        if answering:
            self._thread = threading.Thread(target=self._serve, args=(self.messages,))
            self._thread.start()

    def set_up_queues(self, size: int = 64) -> None:
        """VQ_SETUP of every queue."""
        for index in range(self.config.vq_num):
            self.calls.call(Ioctl.VQ_SETUP, VqConfig(index, size).pack())

    def receive(self) -> DevRequest:
        """The next message, where no thread answers."""
        packet = wait_packet(self.messages)
        assert packet is not None
        return DevRequest.unpack(packet.data)

    def respond(self, response: DevResponse) -> None:
        """Answers a message."""
        send_packet(self.messages, response.pack())

    def close(self) -> None:
        """Closes the node, as a program that ends."""
        if self.messages.fileno() < 0:
            return
        self.messages.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self.messages.close()
        self.calls.close()

    def _serve(self, sock: socket.socket) -> None:
        try:
            while (packet := wait_packet(sock)) is not None:
                request = DevRequest.unpack(packet.data)
                self.seen.append(request.message)
                response = self.reply(request)
                if response is not None:
                    send_packet(sock, response.pack())
        except OSError:
            return
