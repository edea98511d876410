"""Backend ``qcow2``: QEMU's copy-on-write images. See docs/backends/qcow2.md."""

from __future__ import annotations

import os

from vduse import _native
from vduse.backends.errors import BackendError

#: How images begin.
_MAGIC = b"QFI\xfb"


def is_qcow2(path: str) -> bool:
    """Whether a file begins as an image does. Not where it cannot be read: opening it says why."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    try:
        return os.read(fd, len(_MAGIC)) == _MAGIC
    except OSError:
        return False
    finally:
        os.close(fd)


def open_qcow2(
    path: str, pool: _native.Pool, *, read_only: bool = False, direct: bool = False
) -> _native.Backend:
    """Opens and locks an image and what it names, served on a worker of ``pool``, which cannot be
    closed before it. ``direct``: O_DIRECT, past the page cache. BackendError: missing, not
    permitted, locked by another program, or with a feature that is not supported, by its name."""
    try:
        return _native.qcow2_backend(path, pool, read_only=read_only, direct=direct)
    except OSError as error:
        # The native message names the file, which may be one beneath, and says what to do.
        raise BackendError(error.strerror or str(error)) from error
