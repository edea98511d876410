"""A pid file that one program at a time has: locked as QEMU locks it."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from vduse.daemon.qmp.errors import QmpError


class PidFile:
    """Written and locked from its making to :meth:`close`."""

    def __init__(self, path: str) -> None:
        """QmpError: another program has it, or it cannot be written."""
        self._path = path
        self._fd = -1
        try:
            self._fd = self._lock()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.close()
            text = f"cannot create PID file: '{path}': {error.strerror}"
            if isinstance(error, BlockingIOError | PermissionError):
                text += " (another program's, or not yours to write)"
            raise QmpError(text) from None

    def close(self) -> None:
        """Removes it, unless another file has taken its place."""
        if self._fd < 0:
            return
        with suppress(OSError):
            if _same(self._path, self._fd):
                os.unlink(self._path)
        os.close(self._fd)
        self._fd = -1

    def _lock(self) -> int:
        """Where it was removed meanwhile, by its last owner's end, it is made again."""
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same(self._path, fd):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def _same(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
