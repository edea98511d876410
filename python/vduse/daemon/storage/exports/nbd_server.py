"""The daemon's NBD server: --nbd-server and nbd-server-start."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from vduse.daemon.qmp.arguments import Mistake, Model
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports.address import (
    FdAddress,
    InetAddress,
    SocketAddress,
    UnixAddress,
)
from vduse.daemon.storage.objects.tls_creds import TlsCredsX509
from vduse.exports.nbd.listener import NbdListener
from vduse.exports.nbd.negotiator import MAX_CONNECTIONS
from vduse.exports.nbd.served import ServedDisk

#: Its name among what commands are at work on.
NBD_SERVER = "NBD server"


class NbdServerOptions(Model, frozen=True, kw_only=True):
    """NbdServerOptions."""

    #: Keys whose values are ids of objects, and the type of those (qom-type).
    objects: ClassVar[dict[str, str]] = {"tls-creds": "tls-creds-x509"}

    addr: SocketAddress
    #: Clients have to begin TLS.
    tls_creds: str | None = None
    #: Clients at a time; 0: as many as a server takes.
    max_connections: int = MAX_CONNECTIONS

    def mistakes(self) -> Iterator[Mistake]:
        if not 0 <= self.max_connections <= MAX_CONNECTIONS:
            text = f"Parameter 'max-connections' expects a number from 0 to {MAX_CONNECTIONS}"
            yield Mistake("max-connections", text)


class UnixData(Model, frozen=True, kw_only=True):
    """``data`` of a unix address."""

    path: str


class InetData(Model, frozen=True, kw_only=True):
    """``data`` of an inet address."""

    host: str
    port: str


class FdData(Model, frozen=True, kw_only=True, rename={"descriptor": "str"}):
    """``data`` of an inherited socket."""

    descriptor: str


class LegacyAddress(Model, frozen=True, kw_only=True, tag_field="type"):
    """SocketAddressLegacy: what nbd-server-start has, and --nbd-server has not."""

    @abstractmethod
    def address(self) -> SocketAddress:
        """As it is written today."""


class LegacyUnix(LegacyAddress, frozen=True, kw_only=True, tag="unix"):
    """A path."""

    data: UnixData

    def address(self) -> SocketAddress:
        return UnixAddress(path=self.data.path)


class LegacyInet(LegacyAddress, frozen=True, kw_only=True, tag="inet"):
    """A TCP port."""

    data: InetData

    def address(self) -> SocketAddress:
        return InetAddress(host=self.data.host, port=self.data.port)


class LegacyFd(LegacyAddress, frozen=True, kw_only=True, tag="fd"):
    """An inherited socket."""

    data: FdData

    def address(self) -> SocketAddress:
        return FdAddress(descriptor=self.data.descriptor)


class NbdServerStart(Model, frozen=True, kw_only=True):
    """Of nbd-server-start."""

    addr: LegacyAddress
    tls_creds: str | None = None
    max_connections: int = MAX_CONNECTIONS

    def mistakes(self) -> Iterator[Mistake]:
        for mistake in self.addr.address().mistakes():
            yield Mistake(f"addr.data.{mistake.path}", mistake.text)
        yield from self.options().mistakes()

    def options(self) -> NbdServerOptions:
        """As the command line has them."""
        return NbdServerOptions(
            addr=self.addr.address(),
            tls_creds=self.tls_creds,
            max_connections=self.max_connections,
        )


class StorageNbdServer:
    """Listens from its making to :meth:`close`."""

    def __init__(self, options: NbdServerOptions, credentials: TlsCredsX509 | None) -> None:
        """``credentials``: of ``options.tls_creds``. QmpError."""
        session = credentials.server() if credentials is not None else None
        self._listener = NbdListener(
            options.addr.listen(),
            name="nbd",
            max_connections=options.max_connections or MAX_CONNECTIONS,
            session=session,
        )

    def check_name(self, name: str) -> None:
        """QmpError: another export has it."""
        if name in self._listener:
            raise QmpError(f"NBD server already has export named '{name}'")

    def add(self, disk: ServedDisk) -> None:
        """Clients find it from now on. QmpError: another export has its name."""
        try:
            self._listener.add(disk)
        except ValueError:
            raise QmpError(f"NBD server already has export named '{disk.name}'") from None

    def remove(self, disk: ServedDisk) -> None:
        """No client finds it any more; those that have it keep it until its close."""
        self._listener.remove(disk)

    def accept(self) -> None:
        """Clients are accepted from now on; those that came before have waited."""
        self._listener.accept()

    def close(self) -> None:
        """Takes no client any more; those that are there go with their exports."""
        self._listener.close()
