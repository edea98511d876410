"""``nbd``: an export of an NBD server. See docs/backends/nbd.md."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar
from urllib.parse import quote

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.nbd import open_export
from vduse.backends.nbd.address import (
    Address,
    OnError,
    Settings,
    Tcp,
    Tls,
    Unix,
    export_name,
    port_number,
    socket_path,
)
from vduse.daemon.qmp.arguments import Mistake, Model
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.nodes.node import Storage, Surroundings
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.objects.tls_creds import TlsCredsX509, TlsCredsX509Options

#: The name that a server's certificate must be for where nothing else says one.
_LOCAL = "localhost"


class Server(Model, frozen=True, kw_only=True, tag_field="type"):
    """The base of all addresses of servers (QEMU's SocketAddress): as a type it is any of those."""

    @property
    @abstractmethod
    def address(self) -> Tcp | Unix:
        """As the backend has it."""

    @abstractmethod
    def uri(self, export: str) -> str:
        """Of an export there, as QEMU writes it."""


class InetServer(Server, frozen=True, kw_only=True, tag="inet"):
    """InetSocketAddress: a TCP port."""

    host: str
    #: A number.
    port: str

    def mistakes(self) -> Iterator[Mistake]:
        yield from _mistake("port", port_number, self.port)
        if not self.host:
            yield Mistake("host", "Parameter 'host' expects a name or an address")

    @property
    def address(self) -> Tcp:
        return Tcp(self.host, int(self.port))

    def uri(self, export: str) -> str:
        path = f"/{quote(export)}" if export else ""
        return f"nbd://{self.address}{path}"


class UnixServer(Server, frozen=True, kw_only=True, tag="unix"):
    """UnixSocketAddress: a path in the file system."""

    path: str

    def mistakes(self) -> Iterator[Mistake]:
        yield from _mistake("path", socket_path, self.path)

    @property
    def address(self) -> Unix:
        return Unix(self.path)

    def uri(self, export: str) -> str:
        path = f"/{quote(export)}" if export else ""
        return f"nbd+unix://{path}?socket={quote(self.path)}"


class NbdOptions(Blockdev, frozen=True, kw_only=True, tag="nbd"):
    """An export, and how its server is reached. Times in seconds."""

    objects: ClassVar[dict[str, str]] = {"tls-creds": "tls-creds-x509"}

    server: Server
    #: Its name; empty: the server's default.
    export: str = ""
    tls_creds: str | None = None
    tls_hostname: str | None = None
    reconnect_delay: int = 0
    open_timeout: int = 0
    # Not QEMU's.
    on_error: OnError = "report"

    def mistakes(self) -> Iterator[Mistake]:
        yield from _mistake("export", export_name, self.export)
        if self.tls_hostname is not None and self.tls_creds is None:
            yield Mistake("tls-hostname", "Parameter 'tls-hostname' is for tls-creds")
        for key, value in (
            ("reconnect-delay", self.reconnect_delay),
            ("open-timeout", self.open_timeout),
        ):
            if not 0 <= value < 1 << 32:
                yield Mistake(key, f"Parameter '{key}' expects seconds, 0 or more")

    def open(self, around: Surroundings) -> NbdNode:
        name = self.tls_creds
        return NbdNode(self, around.object(name, TlsCredsX509) if name is not None else None)


class NbdNode(Storage):
    """``nbd``."""

    options: NbdOptions

    def __init__(self, options: NbdOptions, credentials: TlsCredsX509 | None) -> None:
        """QmpError."""
        self._certificates = _certificates(credentials) if credentials is not None else None
        super().__init__(options)

    def open_backend(self) -> _native.Backend:
        options = self.options
        try:
            backend = open_export(self._address())
        except BackendError as error:
            raise QmpError(str(error)) from None
        if backend.read_only and not (options.read_only or options.auto_read_only):
            backend.close()
            raise QmpError("NBD export is read-only")
        if options.read_only and not backend.read_only:
            return _native.layer_read_only(backend)
        return backend

    def _address(self) -> Address:
        options = self.options
        settings = Settings(
            reconnect_delay=options.reconnect_delay,
            on_error=options.on_error,
            open_timeout=options.open_timeout,
        )
        return Address(options.server.address, options.export, settings, self._tls())

    def _tls(self) -> Tls | None:
        if self._certificates is None:
            return None
        server = self.options.server.address
        host = server.host if isinstance(server, Tcp) else _LOCAL
        return Tls(self._certificates, self.options.tls_hostname or host)

    @property
    def filename(self) -> str:
        return self.options.server.uri(self.options.export)

    def resize(self, size: int) -> None:
        raise QmpError("Cannot resize NBD nodes")


def _certificates(credentials: TlsCredsX509) -> str:
    """The folder of a client's credentials. QmpError: they are no client's."""
    options = credentials.options
    assert isinstance(options, TlsCredsX509Options)
    if options.endpoint != "client":
        raise QmpError("Expecting TLS credentials with a client endpoint")
    if not options.verify_peer:
        raise QmpError(f"'{options.id}' has verify-peer=off: a server's certificate is verified")
    return options.dir


def _mistake(key: str, check: Callable[[str], object], value: str) -> Iterator[Mistake]:
    try:
        check(value)
    except ValueError as error:
        yield Mistake(key, f"Parameter '{key}': {error}")
