"""Where exports are made: the kernel's VDUSE, the framework of this process, the NBD server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vduse.channel.base import ControlPort
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports.nbd_server import NbdServerOptions, StorageNbdServer
from vduse.daemon.storage.exports.types import TYPES
from vduse.daemon.storage.objects.tls_creds import TlsCredsX509

if TYPE_CHECKING:
    from vduse.framework import Framework

assert TYPES  # the import makes ExportOptions stand for all of them


class Place:
    """A :class:`~vduse.daemon.storage.exports.export.Host`."""

    def __init__(self, kernel: ControlPort, emit: Callable[[str, dict[str, Any]], None]) -> None:
        """``kernel`` stays the caller's. ``emit``: sends an event and its data."""
        self.kernel = kernel
        self.emit = emit
        self._exits = ExitStack()
        self._making = threading.Lock()
        self._embedded: tuple[Framework, ControlPort] | None = None
        self._nbd: StorageNbdServer | None = None
        self._accepting = False

    def embedded(self) -> tuple[Framework, ControlPort]:
        """Made when the first export needs it."""
        with self._making:
            if self._embedded is None:
                from vduse.channel.embedded import EmbeddedControl
                from vduse.framework import Framework

                framework = self._exits.enter_context(Framework())
                control = EmbeddedControl(framework.control())
                self._exits.callback(control.close)
                self._embedded = framework, control
            return self._embedded

    def nbd_server(self) -> StorageNbdServer:
        """QmpError: there is none."""
        if self._nbd is None:
            raise QmpError("NBD server not running")
        return self._nbd

    def start_nbd(self, options: NbdServerOptions, credentials: TlsCredsX509 | None) -> None:
        """``credentials``: of ``options.tls_creds``. QmpError: it runs already, or it cannot listen
        there."""
        if self._nbd is not None:
            raise QmpError("NBD server already running")
        self._nbd = StorageNbdServer(options, credentials)
        if self._accepting:
            self._nbd.accept()

    def accept(self) -> None:
        """NBD clients are accepted from now on; those that came before have waited."""
        self._accepting = True
        if self._nbd is not None:
            self._nbd.accept()

    def stop_nbd(self) -> None:
        """After its exports."""
        if self._nbd is not None:
            self._nbd.close()
            self._nbd = None

    def close(self) -> None:
        """After all exports."""
        self.stop_nbd()
        self._exits.close()
