"""Where a server listens (QEMU's SocketAddress)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from vduse.backends.nbd.address import port_number
from vduse.daemon.activation import sockets
from vduse.daemon.qmp.arguments import Mistake, Model
from vduse.daemon.qmp.errors import QmpError
from vduse.exports.errors import ExportError
from vduse.exports.listen import Listener, UnixListener, socket_path
from vduse.exports.listen_tcp import TcpListener

#: Who may write it may read and write disks.
_MODE = 0o600


class SocketAddress(Model, frozen=True, kw_only=True, tag_field="type"):
    """The base of all addresses: as a type it is any of those."""

    @property
    @abstractmethod
    def place(self) -> str:
        """What nobody else can listen at."""

    @abstractmethod
    def listen(self) -> Listener:
        """QmpError."""


class InetAddress(SocketAddress, frozen=True, kw_only=True, tag="inet"):
    """InetSocketAddress: a TCP port."""

    #: A name or an address; empty: all of this host's.
    host: str
    #: A number.
    port: str

    def mistakes(self) -> Iterator[Mistake]:
        try:
            port_number(self.port)
        except ValueError as error:
            yield Mistake("port", f"Parameter 'port': {error}")

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}"

    def listen(self) -> Listener:
        try:
            return TcpListener(self.host, self.port)
        except ExportError as error:
            raise QmpError(str(error)) from None


class UnixAddress(SocketAddress, frozen=True, kw_only=True, tag="unix"):
    """UnixSocketAddress: a path in the file system."""

    path: str

    def mistakes(self) -> Iterator[Mistake]:
        try:
            socket_path(self.path)
        except ExportError as error:
            yield Mistake("path", str(error))

    @property
    def place(self) -> str:
        return self.path

    def listen(self) -> Listener:
        try:
            return UnixListener(self.path, _MODE)
        except ExportError as error:
            raise QmpError(str(error)) from None


class FdAddress(SocketAddress, frozen=True, kw_only=True, tag="fd", rename={"descriptor": "str"}):
    """FdSocketAddress: a listening socket that was inherited."""

    #: Its number, or the name that systemd gave it.
    descriptor: str

    @property
    def place(self) -> str:
        return f"fd {self.descriptor}"

    def listen(self) -> Listener:
        try:
            return sockets().listener(self.descriptor)
        except ExportError as error:
            raise QmpError(str(error)) from None
