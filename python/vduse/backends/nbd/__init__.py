"""Backend ``nbd``: an export of an NBD server. See docs/backends/nbd.md."""

from __future__ import annotations

import asyncio
import time

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.nbd.address import Address, is_nbd, parse_address
from vduse.backends.nbd.connect import Made, connect
from vduse.backends.nbd.handshake import Refused
from vduse.backends.nbd.keeper import Keeper, loop_thread, run_on

__all__ = ["Address", "is_nbd", "open_export", "open_nbd", "parse_address"]

#: Seconds between attempts to open.
_PAUSE = 0.1


def open_nbd(spec: str) -> _native.Backend:
    """Connects to the export that ``spec`` names. BackendError: no server, no such export, or one
    that no virtio-blk device can be."""
    return open_export(parse_address(spec))


def open_export(address: Address) -> _native.Backend:
    """As :func:`open_nbd`, of an address."""
    loop = loop_thread()
    try:
        made = run_on(loop, _first(address))
    except Refused as error:
        raise BackendError(f"{address}: {error}") from None
    settings = address.settings
    try:
        backend, control = _native.nbd_backend(
            made.socket.detach(),
            made.facts,
            made.tls,
            reconnect_delay=settings.reconnect_delay,
            on_error=settings.on_error,
        )
    except OSError as error:
        raise BackendError(f"{address}: {error.strerror}") from None
    Keeper(loop, address, control)
    return backend


async def _first(address: Address) -> Made:
    deadline = time.monotonic() + address.settings.open_timeout
    while True:
        try:
            return await connect(address)
        except Refused:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(_PAUSE)
