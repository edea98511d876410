"""Makes one connection to an NBD server."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any

from vduse import _native
from vduse.backends.nbd.address import Address, Tcp
from vduse.backends.nbd.handshake import Agreed, Handshake, Refused
from vduse.backends.nbd.tls import new_session, plain_from, start

#: Seconds: what one attempt may take.
ATTEMPT = 10.0
#: Seconds: how soon TCP notices that a server's host is gone, idle or not.
_KEEP_IDLE, _KEEP_INTERVAL, _KEEP_COUNT = 10, 5, 4
_USER_TIMEOUT = _KEEP_IDLE + _KEEP_INTERVAL * _KEEP_COUNT


@dataclass(frozen=True, slots=True)
class Made:
    """A connection past the handshake."""

    socket: socket.socket
    agreed: Agreed
    #: The session that all of it goes through.
    tls: _native.NbdTls | None

    @property
    def facts(self) -> _native.NbdFacts:
        """What the data path has to know of the export."""
        return _native.NbdFacts(
            self.agreed.size,
            self.agreed.flags,
            structured=self.agreed.structured,
            base_allocation=self.agreed.base_allocation,
            minimum_block=self.agreed.minimum_block,
            maximum_payload=self.agreed.maximum_payload,
        )


async def connect(address: Address) -> Made:
    """A connection. Refused: why there is none."""
    try:
        async with asyncio.timeout(ATTEMPT):
            connection = await _open(address)
            try:
                return await _shake_hands(connection, address)
            except BaseException:
                connection.close()
                raise
    except TimeoutError:
        raise Refused(f"no answer within {ATTEMPT:g} s") from None
    except OSError as error:
        raise Refused(error.strerror or str(error)) from None


async def _open(address: Address) -> socket.socket:
    loop = asyncio.get_running_loop()
    server = address.server
    if not isinstance(server, Tcp):
        return await _connected(socket.AF_UNIX, server.path)
    found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{server.host} has no address")
    for family, _, _, _, where in found:
        try:
            # An address that never answers leaves time for the next.
            async with asyncio.timeout(ATTEMPT / len(found)):
                connection = await _connected(family, where)
        except OSError as error:  # TimeoutError is one
            failure = error
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_INTERVAL)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEP_COUNT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT * 1000)
        return connection
    raise failure


async def _connected(family: int, where: tuple[Any, ...] | str) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, where)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError) and error.errno is not None:
            # asyncio's words are of its call.
            error.strerror = os.strerror(error.errno)
        raise
    return connection


async def _shake_hands(connection: socket.socket, address: Address) -> Made:
    loop = asyncio.get_running_loop()
    # Read anew for every connection: certificates are renewed.
    session = new_session(address.tls) if address.tls is not None else None
    shake = Handshake(address.export, tls=session is not None)
    tls: _native.NbdTls | None = None
    plain = b""
    while shake.outcome is None:
        output = shake.take_output()
        if tls is not None:
            tls.send(output)
            output = tls.take_output()
        await loop.sock_sendall(connection, output)
        if shake.wants_tls:
            assert session is not None
            tls = session
            plain = await start(tls, connection)
            shake.secured()
        elif tls is None:
            shake.receive(await loop.sock_recv(connection, shake.wanted))
        else:
            plain = plain or await plain_from(tls, connection)
            step, plain = plain[: shake.wanted], plain[shake.wanted :]
            shake.receive(step)
    if plain:
        raise Refused("the server broke the protocol: data before the first request")
    return Made(connection, shake.outcome, tls)
