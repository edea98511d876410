"""Backend ``file``: a raw image or a block device. See docs/backends/file.md."""

from __future__ import annotations

import errno

from vduse import _native
from vduse.backends.errors import BackendError


def open_file(
    path: str, *, read_only: bool = False, direct: bool = False, lock_late: bool = False
) -> _native.Backend:
    """Opens and locks a raw image. ``direct``: O_DIRECT, past the page cache. ``lock_late``: it
    is locked while a driver is live, and the device refuses one where it cannot be. BackendError:
    missing, not permitted, locked by another program, or not of whole sectors."""
    try:
        return _native.Backend.file(path, read_only=read_only, direct=direct, lock_late=lock_late)
    except FileNotFoundError:
        raise BackendError(f"{path}: no such file; create it: truncate -s 1G {path}") from None
    except IsADirectoryError:
        raise BackendError(f"{path}: is a directory; name an image file") from None
    except PermissionError:
        hint = "change its mode" if read_only else "open it read-only, or change its mode"
        raise BackendError(f"{path}: permission denied; {hint}") from None
    except OSError as error:
        if error.errno == errno.EROFS:
            raise BackendError(f"{path}: on a read-only file system; open it read-only") from None
        # The native message names the path and says what to do.
        raise BackendError(error.strerror or str(error)) from error
