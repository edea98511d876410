"""Backend ``rbd``: an image of a Ceph cluster. See docs/backends/rbd.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.options import parse_options, split_options
from vduse.control.units import parse_duration

#: The prefix of its spelling.
PREFIX = "rbd:"

Lock = Literal["refuse", "break", "share"]
OnError = Literal["wait", "report"]


@dataclass(frozen=True)
class RbdImage:
    """Names an image, or a snapshot of one."""

    pool: str
    image: str
    namespace: str | None = None
    snapshot: str | None = None


def parse_image(name: str) -> RbdImage:
    """Parses Ceph's ``POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]``. BackendError."""
    path, at, snapshot = name.partition("@")
    parts = path.split("/")
    if len(parts) not in (2, 3) or not all(parts) or bool(at) != bool(snapshot):
        raise BackendError(
            f"{PREFIX}{name}: name an image as POOL/[NAMESPACE/]IMAGE[@SNAPSHOT], "
            "as in rbd:rbd/disk1"
        )
    pool, *namespace, image = parts
    return RbdImage(pool, image, namespace[0] if namespace else None, snapshot or None)


def open_rbd(
    image: RbdImage,
    *,
    conf: str | None = None,
    mon_host: str | None = None,
    auth: str | None = None,
    id: str | None = None,
    keyring: str | None = None,
    key: str | None = None,
    read_only: bool = False,
    direct: bool = False,
    lock: Lock = "refuse",
    open_timeout: float = 30,
    reconnect_delay: float = 30,
    on_error: OnError = "wait",
) -> _native.Backend:
    """Connects and opens ``image``; waits for the cluster at most ``open_timeout`` seconds.

    ``mon_host``, ``auth``: the configuration's ``mon_host`` and ``auth_client_required``. ``id``:
    the cephx user without ``client.``; ``key``: its secret itself. With ``on_error`` report
    a request that the cluster has not answered for ``reconnect_delay`` seconds fails with EIO;
    with wait it waits on. BackendError: one line that says what to do.
    """
    try:
        return _native.rbd_backend(
            image.pool,
            image.image,
            namespace=image.namespace,
            snapshot=image.snapshot,
            conf=conf,
            mon_host=mon_host,
            auth=auth,
            id=id,
            keyring=keyring,
            key=key,
            read_only=read_only,
            direct=direct,
            lock=lock,
            open_timeout=open_timeout,
            reconnect_delay=reconnect_delay if on_error == "report" else None,
        )
    except OSError as error:
        # The native message names the image and says what to do.
        raise BackendError(error.strerror or str(error)) from error


def open_rbd_spec(
    spec: str, *, read_only: bool = False, direct: bool = False, lock_late: bool = False
) -> _native.Backend:
    """Opens ``rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][,key=value...]``. With ``lock_late`` librbd
    hands the lock to who asks for it unless the spec says otherwise: a disk that migrates.
    BackendError."""
    name, options = split_options(spec.removeprefix(PREFIX))
    image = parse_image(name)
    given = parse_options("rbd", options, _KEYS)
    secret = given.pop("key-secret", None)
    arguments = {key.replace("-", "_"): value for key, value in given.items()}
    if "reconnect_delay" in arguments and arguments.get("on_error") != "report":
        raise BackendError(f"{spec}: reconnect-delay is for on-error=report")
    if secret is not None and "keyring" in arguments:
        raise BackendError(f"{spec}: keyring and key-secret: one of them")
    if lock_late:
        arguments.setdefault("lock", "share")
    return open_rbd(image, key=secret, read_only=read_only, direct=direct, **arguments)


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"'{value}' is none of {', '.join(choices)}")
        return value

    return parse


def _secret(path: str) -> str:
    """A key is read from a file: command lines are everybody's to see."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


_KEYS: dict[str, Callable[[str], Any]] = {
    "conf": str,
    "id": str,
    "keyring": str,
    "key-secret": _secret,
    "lock": _one_of(get_args(Lock)),
    "open-timeout": parse_duration,
    "reconnect-delay": parse_duration,
    "on-error": _one_of(get_args(OnError)),
}
