"""An NBD client that behaves, or does not. Numbers are those of the NBD protocol document."""

from __future__ import annotations

import random
import socket
import struct

_HELLO = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IIQ")
_GO, _ACK = 7, 1
_READ, _DISCONNECT = 0, 2


def visit(path: str, rng: random.Random) -> None:
    """Connects, reads a little, and leaves: in order, in mid-request, or in mid-handshake."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(path)
        _take(client, _HELLO.size)
        if rng.random() < 0.2:
            client.sendall(rng.randbytes(rng.randrange(64)))
            return
        client.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        payload = struct.pack(">IH", 0, 0)
        client.sendall(_OPTION.pack(b"IHAVEOPT", _GO, len(payload)) + payload)
        while True:
            _, _, kind, length = _REPLY.unpack(_take(client, _REPLY.size))
            _take(client, length)
            if kind == _ACK:
                break
        for cookie in range(rng.randrange(1, 8)):
            client.sendall(_REQUEST.pack(0x25609513, 0, _READ, cookie, 4096 * cookie, 4096))
            if rng.random() < 0.1:
                return
            _, error, _ = _SIMPLE.unpack(_take(client, _SIMPLE.size))
            if not error:
                _take(client, 4096)
        client.sendall(_REQUEST.pack(0x25609513, 0, _DISCONNECT, 0, 0, 0))


def _take(client: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = client.recv(length - len(data))
        if not part:
            raise ConnectionError("the server closed the connection")
        data += part
    return data
