"""Backend ``file``: a raw image or a block device. See docs/backends/file.md."""

from __future__ import annotations

import errno

from vduse import _native
from vduse.backends.errors import BackendError


def open_file(path: str, *, read_only: bool = False, direct: bool = False) -> _native.Backend:
    """Opens and locks a raw image. ``direct``: O_DIRECT, past the page cache. BackendError:
    missing, not permitted, locked by another program, or without a whole block."""
    try:
        backend = _native.Backend.file(path, read_only=read_only, direct=direct)
    except FileNotFoundError:
        raise BackendError(f"{path}: no such file; create it: truncate -s 1G {path}") from None
    except IsADirectoryError:
        raise BackendError(f"{path}: is a directory; name an image file") from None
    except BlockingIOError:
        raise BackendError(
            f"{path}: another program uses this image; stop that one, or open read-only"
        ) from None
    except PermissionError:
        wanted = "reading" if read_only else "writing; open it read-only or change its mode"
        raise BackendError(f"{path}: no permission for {wanted}") from None
    except OSError as error:
        hint = "; try without direct" if direct and error.errno == errno.EINVAL else ""
        raise BackendError(f"{path}: {error.strerror or error}{hint}") from error
    if backend.size == 0 or backend.size % backend.block_size:
        size, block = backend.size, backend.block_size
        backend.close()
        raise BackendError(
            f"{path}: {size} bytes is no multiple of {block}; truncate -s %{block} {path}"
            if size
            else f"{path}: is empty; give it a size: truncate -s 1G {path}"
        )
    return backend
