"""A running daemon's state, by QMP. Each question has a connection of its own: a monitor has one
client at a time, and others want it, too."""

from __future__ import annotations

import msgspec

from vduse.daemon.errors import UserError
from vduse.daemon.qmp.client import QmpClient, UnknownCommand
from vduse.daemon.watch.state import State


def ask(path: str, *, buckets: bool, timeout: float) -> State:
    """Of who serves QMP at ``path``. ``timeout``: seconds for a connection, and again for the
    answer. UserError."""
    with QmpClient(path, timeout=timeout, served_by=_SERVED_BY.format(path)) as client:
        try:
            answer = client.execute("x-query-state", timeout=timeout, buckets=buckets)
            return msgspec.convert(answer, State)
        except UnknownCommand:
            raise UserError(
                f"{path}: serves QMP, but is no storage daemon of this version"
            ) from None
        except msgspec.ValidationError as error:
            raise UserError(f"{path}: not the answer of this version: {error}") from None


_SERVED_BY = (
    "vduse storage-daemon --chardev socket,id=c,path={},server=on,wait=off --monitor chardev=c"
)
