"""The command line's spelling of backends: ``null``, ``memory``, ``python:MODULE:CLASS``,
``nbd:...`` or an NBD URI, ``qcow2:PATH``, ``rbd:POOL/IMAGE``, ``file:PATH`` or a path."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.file import open_file
from vduse.backends.layer_spec import parse_layer
from vduse.backends.memory import open_memory
from vduse.backends.nbd import is_nbd, open_nbd
from vduse.backends.null import open_null
from vduse.backends.python_spec import open_python
from vduse.backends.qcow2 import is_qcow2, open_qcow2
from vduse.backends.rbd import PREFIX as RBD
from vduse.backends.rbd import open_rbd_spec
from vduse.control.spelling import did_you_mean

_SECTOR = 512
_LARGEST = (1 << 63) - _SECTOR
_SIZED = {"null": open_null, "memory": open_memory}


def open_backend(
    spec: str,
    *,
    size: int | None = None,
    read_only: bool = False,
    direct: bool = False,
    layers: Sequence[str] = (),
    lock_late: bool = False,
    pool: Callable[[], _native.Pool] | None = None,
) -> _native.Backend:
    """Opens what ``spec`` names.

    ``size`` in bytes is for ``null`` and ``memory``, which have none of their own, and for
    ``python``, see :func:`~vduse.backends.python_spec.open_python`; ``direct`` is for files and
    images, ``lock_late`` for files and ``rbd``, see :func:`~vduse.backends.file.open_file` and
    :func:`~vduse.backends.rbd.open_rbd_spec`.
    ``pool``: the workers of what is served by tasks of its own, ``qcow2``.
    ``read_only`` opens files and ``rbd`` so; of the others only the device can be read-only. A path
    that is called like a backend is written ``file:null`` or ``./null``; a qcow2 image's
    bytes are ``file:PATH``, as a path alone to one is refused. ``layers`` (see docs/layers.md) go
    on it in the order given; a file that they never write to is opened read-only. Closing the
    result closes all. BackendError: one line that says what to do.
    """
    parsed = [parse_layer(layer) for layer in layers]
    read_only = read_only or any(layer.spares_below for layer in parsed)
    with ExitStack() as undo:
        backend = _open_base(
            spec, size=size, read_only=read_only, direct=direct, lock_late=lock_late, pool=pool
        )
        undo.callback(backend.close)
        for layer in parsed:
            backend = layer.on(backend)
            # It closes what lies beneath.
            undo.pop_all()
            undo.callback(backend.close)
        undo.pop_all()
    return backend


def _open_base(
    spec: str,
    *,
    size: int | None,
    read_only: bool,
    direct: bool,
    lock_late: bool,
    pool: Callable[[], _native.Pool] | None,
) -> _native.Backend:
    if spec.startswith("python:"):
        if direct:
            raise BackendError(f"{spec}: direct is for files")
        return open_python(spec, size=size, read_only=read_only)
    if spec.startswith("qcow2:"):
        path = spec.removeprefix("qcow2:")
        if not path:
            raise BackendError("qcow2: needs a path, as in qcow2:disk.qcow2")
        if size is not None:
            raise BackendError(f"{spec}: an image has its own size")
        if pool is None:
            raise BackendError(f"{spec}: needs worker threads")
        return open_qcow2(path, pool(), read_only=read_only, direct=direct)
    if is_nbd(spec):
        if direct:
            raise BackendError(f"{spec}: direct is for files")
        if size is not None:
            raise BackendError(f"{spec}: an NBD export has its own size")
        return open_nbd(spec)
    if spec.startswith(RBD):
        if size is not None:
            name = spec.removeprefix(RBD).partition(",")[0]
            raise BackendError(f"{spec}: an image has its own size; change it: rbd resize {name}")
        return open_rbd_spec(spec, read_only=read_only, direct=direct, lock_late=lock_late)
    if spec in _SIZED:
        if direct:
            raise BackendError(f"{spec}: direct is for files")
        if size is None:
            raise BackendError(f"{spec}: needs a size")
        if size <= 0 or size % _SECTOR:
            raise BackendError(f"{spec}: a size of {size} bytes is no multiple of {_SECTOR}")
        if size > _LARGEST:
            raise BackendError(f"{spec}: {size} bytes are too many; at most {_LARGEST}")
        try:
            return _SIZED[spec](size)
        except (OSError, MemoryError, OverflowError) as error:
            raise BackendError(f"{spec}: {size} bytes: {error}") from error
    path = spec.removeprefix("file:")
    if not path:
        raise BackendError("file: needs a path, as in file:disk.img")
    name = spec.partition(",")[0]
    if not os.path.exists(path) and name != spec and name in _SIZED:
        raise BackendError(f"{spec}: {name} takes no keys and needs a size")
    if size is not None and os.path.exists(path):
        raise BackendError(f"{path}: a file has its own size; change it: truncate -s {size} {path}")
    if size is not None:
        hint = did_you_mean(spec, _SIZED) or f"; create it: truncate -s {size} {path}"
        raise BackendError(f"{path}: no such file{hint}")
    if path == spec and is_qcow2(path):
        raise BackendError(
            f"{path}: a qcow2 image: type qcow2:{path} for its disk, file:{path} for its bytes"
        )
    return open_file(path, read_only=read_only, direct=direct, lock_late=lock_late)
