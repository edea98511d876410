"""Where an NBD export is: the spellings of ``nbd:`` and of NBD URIs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast
from urllib.parse import parse_qs, unquote, urlsplit

from vduse.backends.errors import BackendError
from vduse.backends.options import parse_options, split_options
from vduse.control.units import parse_duration

#: IANA's port of NBD.
PORT = 10809
OnError: TypeAlias = Literal["report", "wait"]

_USAGE = "as in nbd:unix:/run/nbd.sock or nbd:HOST:PORT"
_SCHEMES = ("nbd", "nbd+unix", "nbds", "nbds+unix")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HOST_PORT = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>\d+)")


@dataclass(frozen=True, slots=True)
class Tcp:
    """A server on a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Unix:
    """A server on a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a connection that was lost does; seconds."""

    #: How long requests wait for a connection.
    reconnect_delay: float = 30.0
    #: What follows.
    on_error: OnError = "report"
    #: How long opening tries again.
    open_timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class Tls:
    """The connection is made by TLS, or not at all."""

    #: A folder of ca-cert.pem and, where the server asks for them, client-cert.pem and
    #: client-key.pem: the names that QEMU and libnbd use.
    certificates: str
    #: The name that the server's certificate must be for.
    host: str


@dataclass(frozen=True, slots=True)
class Address:
    """One export of one server."""

    server: Tcp | Unix
    export: str = ""
    settings: Settings = field(default_factory=Settings)
    tls: Tls | None = None

    def __str__(self) -> str:
        return f"nbd:{self.server}" + (f",export={self.export}" if self.export else "")


def is_nbd(spec: str) -> bool:
    """Whether ``spec`` is one of :func:`parse_address`'s spellings."""
    return re.match(r"nbds?(\+unix)?:", spec) is not None


def parse_address(spec: str) -> Address:
    """``nbd:unix:PATH``, ``nbd:HOST:PORT``, either with ``,key=value``, or a URI. BackendError: one
    line that says what to do."""
    scheme, _, rest = spec.partition(":")
    if rest.startswith("//"):
        return _parse_uri(spec)
    if scheme != "nbd":
        raise BackendError(f"{spec}: no NBD URI; {_USAGE}")
    where, options = split_options(rest)
    values = parse_options("nbd", options, _KEYS)
    export = values.pop("export", "")
    if where.startswith("unix:"):
        server = Unix(_path(spec, where.removeprefix("unix:")))
        return _address(spec, server, export, values, wants_tls=False)
    match = _HOST_PORT.fullmatch(where)
    if match is None:
        raise BackendError(f"{spec}: names no server; {_USAGE}")
    tcp = Tcp(match["six"] or match["host"], _port(spec, match["port"]))
    return _address(spec, tcp, export, values, wants_tls=False)


def _address(
    spec: str, server: Tcp | Unix, export: str, values: dict[str, Any], *, wants_tls: bool
) -> Address:
    certificates = values.pop("tls-certificates", None)
    host = values.pop("tls-hostname", None)
    settings = Settings(**{key.replace("-", "_"): value for key, value in values.items()})
    if certificates is None:
        if wants_tls or host is not None:
            raise BackendError(
                f"{spec}: name a folder with ca-cert.pem: tls-certificates=/etc/pki/nbd"
            )
        return Address(server, export, settings)
    if host is None:
        host = server.host if isinstance(server, Tcp) else "localhost"
    return Address(server, export, settings, Tls(certificates, host))


def _parse_uri(spec: str) -> Address:
    """Of the NBD URI document; the keys of the other spelling are query parameters too."""
    try:
        uri = urlsplit(spec)
        port = uri.port
        query = parse_qs(uri.query, strict_parsing=True) if uri.query else {}
    except ValueError as error:
        raise BackendError(f"{spec}: {error}") from None
    if uri.scheme not in _SCHEMES:
        known = ", ".join(_SCHEMES)
        raise BackendError(f"{spec}: no such scheme '{uri.scheme}'; there are {known}")
    wants_tls = uri.scheme.startswith("nbds")
    if uri.username is not None or uri.fragment:
        raise BackendError(f"{spec}: an NBD URI has no user and no fragment here")
    export = unquote(uri.path.removeprefix("/"))
    given = {key: values[-1] for key, values in query.items()}
    socket = given.pop("socket", None)
    values = parse_options("nbd", given, {k: v for k, v in _KEYS.items() if k != "export"})
    if uri.scheme.endswith("+unix"):
        if socket is None or uri.netloc:
            raise BackendError(f"{spec}: name the socket: {uri.scheme}:///EXPORT?socket=PATH")
        unix = Unix(_path(spec, socket))
        return _address(spec, unix, export, values, wants_tls=wants_tls)
    if socket is not None:
        raise BackendError(f"{spec}: a socket goes with {uri.scheme}+unix:///")
    if not uri.hostname:
        raise BackendError(f"{spec}: names no host")
    tcp = Tcp(uri.hostname, PORT if port is None else port)
    return _address(spec, tcp, export, values, wants_tls=wants_tls)


def _path(spec: str, path: str) -> str:
    if not path:
        raise BackendError(f"{spec}: names no socket; {_USAGE}")
    try:
        return socket_path(path)
    except ValueError as error:
        raise BackendError(f"{spec}: {error}") from None


def _port(spec: str, text: str) -> int:
    try:
        return port_number(text)
    except ValueError as error:
        raise BackendError(f"{spec}: {error}") from None


def socket_path(path: str) -> str:
    """A Unix socket's path. ValueError: it cannot be one."""
    if not path or len(path.encode(errors="surrogateescape")) > 107 or "\0" in path:
        raise ValueError("a socket's path has 1 to 107 bytes")
    return path


def port_number(text: str) -> int:
    """A TCP port. ValueError: it is none."""
    if not _PORT.fullmatch(text) or int(text) >= 1 << 16:
        raise ValueError(f"no port {text}; ports are from 1 to 65535")
    return int(text)


def export_name(text: str) -> str:
    """An export's name. ValueError: it cannot be one."""
    if len(text.encode(errors="surrogateescape")) > 4096 or "\0" in text:
        raise ValueError("an export's name has at most 4096 bytes")
    return text


def _on_error(text: str) -> OnError:
    if text not in ("report", "wait"):
        raise ValueError(f"'{text}' is neither report nor wait")
    return cast(OnError, text)


_KEYS: dict[str, Callable[[str], Any]] = {
    "export": export_name,
    "reconnect-delay": parse_duration,
    "on-error": _on_error,
    "open-timeout": parse_duration,
    "tls-certificates": str,
    "tls-hostname": str,
}
