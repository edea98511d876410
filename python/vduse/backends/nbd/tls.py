"""TLS sessions of connections to NBD servers, while the handshake is made in them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from vduse import _native
from vduse.backends.nbd.address import Tls
from vduse.backends.nbd.handshake import Refused

#: Bytes read at once.
_READ = 16 << 10


def new_session(tls: Tls) -> _native.NbdTls:
    """A session that has not begun. Refused: files are missing, or are no certificates."""
    folder = Path(tls.certificates)
    try:
        authorities = (folder / "ca-cert.pem").read_bytes()
        client = None
        if (folder / "client-cert.pem").exists():
            chain = (folder / "client-cert.pem").read_bytes()
            client = chain, (folder / "client-key.pem").read_bytes()
    except OSError as error:
        raise Refused(f"TLS: {error.filename}: {error.strerror}") from None
    try:
        return _native.NbdTls(tls.host, authorities, client)
    except OSError as error:
        raise Refused(f"TLS: {folder}: {error.strerror}") from None


async def start(session: _native.NbdTls, connection: socket.socket) -> bytes:
    """Makes the session; plaintext that came at once. Refused: certificates do not fit."""
    loop = asyncio.get_running_loop()
    plain = b""
    while True:
        await loop.sock_sendall(connection, session.take_output())
        if not session.handshaking:
            return plain
        plain += await _more(session, connection)


async def plain_from(session: _native.NbdTls, connection: socket.socket) -> bytes:
    """What the server sends next; nothing at all: it has gone."""
    while True:
        plain = await _more(session, connection)
        if plain:
            return plain


async def _more(session: _native.NbdTls, connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    data = await loop.sock_recv(connection, _READ)
    if not data:
        raise Refused("the server closed the connection during the TLS handshake")
    try:
        return session.receive(data)
    except OSError as error:
        # An alert says so to the server.
        await loop.sock_sendall(connection, session.take_output())
        raise Refused(f"TLS: {error.strerror}") from None
