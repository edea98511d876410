"""A disk, served to NBD clients at a unix socket."""

from __future__ import annotations

import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self
from urllib.parse import quote

from vduse import _native
from vduse.bus.disk import Disk
from vduse.exports.listen import UnixListener
from vduse.exports.nbd.listener import NbdListener
from vduse.exports.nbd.served import CLOSE_TIMEOUT, ServedDisk


class NbdServer:
    """Serves from its making to :meth:`close`, which leaves the disk as it is. A context
    manager.

    ::

        with NbdServer(framework.disk("disk0"), "disk.sock") as server:
            subprocess.run(["nbdinfo", server.uri])
    """

    def __init__(
        self,
        disk: Disk,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        mode: int = 0o600,
        description: str = "",
        pool: _native.Pool | None = None,
        first_worker: int = 0,
        data_path: _native.BlkDataPath | None = None,
    ) -> None:
        """``name``: of the export, beside the empty one that NBD clients ask for by default;
        None: the disk's. ``mode``: of the socket's file; who may write it may connect.
        ``pool``, ``first_worker`` and ``data_path``: as of :class:`vduse._native.NbdExport`;
        without a pool it has its own. ExportError: it cannot listen there."""
        self._pid = os.getpid()
        self._closed = False
        with ExitStack() as undo:
            listener = UnixListener(path, mode)
            undo.callback(listener.close)
            self._own_pool = None
            if pool is None:
                pool = self._own_pool = _native.Pool()
                undo.callback(pool.close)
            self._served = ServedDisk(
                disk,
                disk.name if name is None else name,
                pool=pool,
                first_worker=first_worker,
                data_path=data_path,
                description=description,
            )
            undo.pop_all()
        self.path = listener.path
        self._listener = NbdListener(listener, name=f"nbd {disk.name}")
        self._listener.add(self._served)
        self._listener.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """For NBD clients on this host: ``nbd+unix:///?socket=...``."""
        return f"nbd+unix:///?socket={quote(os.fsencode(os.path.abspath(self.path)))}"

    @property
    def connections(self) -> int:
        """Those in their transmission phase now."""
        return self._served.connections

    def stats(self) -> dict[str, int]:
        """See :meth:`vduse._native.NbdExport.stats`."""
        return self._served.stats()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Removes the socket, answers the requests taken, at most ``timeout`` seconds, and closes
        all connections; false if some requests were not answered. Nothing in a forked child."""
        if self._closed or os.getpid() != self._pid:
            return True
        self._closed = True
        self._listener.close()
        answered = self._served.close(timeout)
        if self._own_pool is not None:
            self._own_pool.close()
        return answered
