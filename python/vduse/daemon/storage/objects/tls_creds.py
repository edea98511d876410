"""``tls-creds-x509``: certificates for connections by TLS, in a folder under QEMU's names."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from vduse import _native
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.objects.options import Object, ObjectOptions

#: Files by endpoint that have to be there; a client's own certificate may be missing.
_NEEDED = {
    "server": ("ca-cert.pem", "server-cert.pem", "server-key.pem"),
    "client": ("ca-cert.pem",),
}


class TlsCredsX509Options(ObjectOptions, frozen=True, kw_only=True, tag="tls-creds-x509"):
    """Options."""

    dir: str
    #: Which end of a connection they are for.
    endpoint: Literal["client", "server"] = "client"
    verify_peer: bool = True

    def open(self) -> TlsCredsX509:
        return TlsCredsX509(self)


class TlsCredsX509(Object):
    """A folder of certificates."""

    missing = ("No TLS credentials with id '", "'")

    def __init__(self, options: TlsCredsX509Options) -> None:
        """QmpError: a file is missing."""
        super().__init__(options)
        self.verify_peer = options.verify_peer
        self.endpoint = options.endpoint
        #: Paths.
        self.ca, *self.own = (os.path.join(options.dir, name) for name in _NEEDED[options.endpoint])
        for path in (self.ca, *self.own):
            if not os.access(path, os.R_OK):
                raise QmpError(f"Unable to access credentials {path}: not there, or not readable")

    def server(self) -> Callable[[], _native.NbdTls]:
        """Makes a server's sessions, of the files as they are now; with ``verify-peer`` clients
        need certificates, too. QmpError."""
        if self.endpoint != "server":
            raise QmpError("Expecting TLS credentials with a server endpoint")
        try:
            ca, chain, key = (Path(path).read_bytes() for path in (self.ca, *self.own))
            authorities = ca if self.verify_peer else None
            session = partial(_native.NbdTls.server, chain, key, authorities)
            session()
        except OSError as error:
            where = error.filename or self.options.id
            raise QmpError(f"TLS credentials: {where}: {error.strerror}") from None
        return session
