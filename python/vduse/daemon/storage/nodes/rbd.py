"""``rbd``: an image of a Ceph cluster, or a snapshot of one. See docs/backends/rbd.md."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import ClassVar, Literal

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.rbd import Lock, OnError, RbdImage, open_rbd
from vduse.daemon.qmp.arguments import Mistake, Model
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.nodes.node import Storage, Surroundings
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.objects.secret import Secret


class Monitor(Model, frozen=True, kw_only=True):
    """Where a monitor of the cluster listens (QEMU's InetSocketAddressBase)."""

    host: str
    port: str

    @property
    def address(self) -> str:
        """As ceph.conf has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class RbdOptions(Blockdev, frozen=True, kw_only=True, tag="rbd"):
    """An image, and how the cluster is reached. Times in seconds."""

    objects: ClassVar[dict[str, str]] = {"key-secret": "secret"}

    pool: str
    image: str
    namespace: str | None = None
    snapshot: str | None = None
    conf: str | None = None
    #: The cephx user, without ``client.``.
    user: str | None = None
    auth_client_required: tuple[Literal["cephx", "none"], ...] | None = None
    key_secret: str | None = None
    server: tuple[Monitor, ...] | None = None
    # Not QEMU's.
    keyring: str | None = None
    lock: Lock = "refuse"
    open_timeout: int = 30
    on_error: OnError = "wait"
    reconnect_delay: int | None = None

    @property
    def delay(self) -> int:
        """Seconds that requests wait with on-error=report."""
        return 30 if self.reconnect_delay is None else self.reconnect_delay

    def mistakes(self) -> Iterator[Mistake]:
        for key in ("pool", "image"):
            if not getattr(self, key):
                yield Mistake(key, f"Parameter '{key}' expects a name")
        if self.key_secret is not None and self.keyring is not None:
            yield Mistake("keyring", "'keyring' and 'key-secret' are mutually exclusive")
        if not 1 <= self.open_timeout < 1 << 32:
            yield Mistake("open-timeout", "Parameter 'open-timeout' expects seconds, 1 or more")
        if self.reconnect_delay is not None:
            if self.on_error != "report":
                text = "Parameter 'reconnect-delay' is for on-error=report"
                yield Mistake("reconnect-delay", text)
            elif not 0 <= self.reconnect_delay < 1 << 32:
                text = "Parameter 'reconnect-delay' expects seconds, 0 or more"
                yield Mistake("reconnect-delay", text)

    def open(self, around: Surroundings) -> RbdNode:
        if self.snapshot is not None and not (self.read_only or self.auto_read_only):
            raise QmpError("rbd snapshots are read-only")
        secret = self.key_secret
        return RbdNode(self, around.object(secret, Secret) if secret is not None else None)


class RbdNode(Storage):
    """``rbd``."""

    options: RbdOptions

    def __init__(self, options: RbdOptions, secret: Secret | None) -> None:
        # QEMU's secrets are bytes; a cephx key is their base64.
        self._key = base64.b64encode(secret.data).decode() if secret else None
        super().__init__(options)

    def open_backend(self) -> _native.Backend:
        options = self.options
        servers, auth = options.server, options.auth_client_required
        try:
            return open_rbd(
                RbdImage(options.pool, options.image, options.namespace, options.snapshot),
                conf=options.conf,
                mon_host=";".join(each.address for each in servers) if servers else None,
                auth=";".join(auth) if auth else None,
                id=options.user,
                keyring=options.keyring,
                key=self._key,
                read_only=options.read_only is True,
                direct=self.direct,
                lock=options.lock,
                open_timeout=options.open_timeout,
                on_error=options.on_error,
                reconnect_delay=options.delay,
            )
        except BackendError as error:
            raise QmpError(str(error)) from None

    @property
    def filename(self) -> str:
        given = {key: getattr(self.options, key) for key in _NAMES}
        shown = {key: value for key, value in given.items() if value is not None}
        return f"json:{json.dumps({'driver': 'rbd', **shown})}"

    def resize(self, size: int) -> None:
        self.check_writable()
        self._backend.resize(size)


#: What an image is named by.
_NAMES = ("pool", "namespace", "image", "snapshot", "conf", "user")
