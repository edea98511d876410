"""What ends a command early, and the exit code of each.

UserError             2    a person's mistake: one line that says what to do
Stopped            128+n    SIGINT (130), SIGTERM (143) or SIGHUP (129); everything was cleaned up
BrokenPipeError       1    whoever read our output has gone; nothing is said
any other Exception   1    a fault of ours: a hint, and the traceback with -v

A :class:`~vduse.bus.errors.VdpaError` and what the system refuses (:func:`refusal`) are a
person's affair, too.
"""

from __future__ import annotations

import errno
import os

from vduse.bus.errors import VdpaError
from vduse.control.refusals import NO_FDS_LEFT

EXIT_FAULT = 1
EXIT_USER = 2


class UserError(Exception):
    """Something the person can put right; the message says how, in one line."""


class Stopped(BaseException):
    """A signal asked the program to end. Not an Exception: nothing swallows it by accident."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


_IMAGE_ADVICE = {
    errno.ENOENT: "no such file or folder: check the path",
    errno.EACCES: "permission denied: check its owner and mode, and its folder's",
    errno.EPERM: "operation not permitted: check its owner and mode",
    errno.EROFS: "it lies on a read-only file system: use another folder",
    errno.ENXIO: "neither a file nor a block device: name a disk image",
    errno.ELOOP: "its symbolic links go round in a circle: check the path",
    errno.ENAMETOOLONG: "the name is too long: use a shorter one",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENOTDIR: "a part of the path is not a folder: check the path",
    errno.ENOSPC: "no space left there: free some, or use another folder",
    errno.EDQUOT: "the disk quota there is used up: free some, or use another folder",
    errno.EIO: "its storage failed a request (input/output error): see the system's log",
    errno.EFBIG: "too large for that file system: use a smaller --size",
    errno.EAGAIN: "in use by another program: stop that one first, or use another image",
    errno.EINVAL: "direct I/O is not possible there: leave out --direct",
}


def image_error(path: str, error: OSError) -> UserError:
    """What an error on an image means for the person who named it."""
    advice = _IMAGE_ADVICE.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"{path}: {advice}")


_REFUSALS = {
    errno.EMFILE: NO_FDS_LEFT,
    errno.ENFILE: "too many open files on this host: close some programs",
    errno.ENOMEM: "not enough memory: free some, or raise the limit (ulimit -v)",
    errno.ENOSPC: "no space left: free some in the folder for temporary files, or set TMPDIR",
    errno.EDQUOT: "the disk quota is used up: free some, or set TMPDIR",
    errno.EFBIG: "a file would be larger than this process may write: raise the limit (ulimit -f)",
    errno.EROFS: "the folder for temporary files is read-only: set TMPDIR",
    errno.EPERM: "the system does not permit it: vduse doctor says what this host lacks",
    errno.EOPNOTSUPP: "the system does not support it: vduse doctor says what this host lacks",
    errno.ENOSYS: "the system has no such call: vduse doctor says what this host lacks",
}


def refusal(error: Exception) -> UserError | None:
    """What the person can do about an error of the framework or of the system; None where the
    fault is ours."""
    if isinstance(error, VdpaError):
        return UserError(str(error))
    if isinstance(error, MemoryError):
        return UserError(_REFUSALS[errno.ENOMEM])
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return UserError("no more threads for this process: raise the limits (ulimit -u, -v)")
    if isinstance(error, OSError) and error.filename and error.errno in _IMAGE_ADVICE:
        return image_error(os.fsdecode(error.filename), error)
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return UserError(_REFUSALS[error.errno])
    return None
