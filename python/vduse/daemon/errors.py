"""What ends a command early, and the exit code of each.

UserError             2    a person's mistake: one line that says what to do
Stopped            128+n    SIGINT (130) or SIGTERM (143); everything was cleaned up
any other Exception   1    a fault of ours: a hint, and the traceback with -v
"""

from __future__ import annotations

import errno

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
    errno.EACCES: "permission denied: check its owner and mode, or use --read-only",
    errno.EPERM: "operation not permitted: check its owner and mode, or use --read-only",
    errno.EROFS: "it lies on a read-only file system: use --read-only",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.ENOTDIR: "a part of the path is not a folder: check the path",
    errno.ENOSPC: "no space left there: free some, or use a smaller --size",
    errno.EFBIG: "too large for that file system: use a smaller --size",
    errno.EAGAIN: "in use by another program: stop that one first, or use another image",
    errno.EINVAL: "direct I/O is not possible there: leave out --direct",
}


def image_error(path: str, error: OSError) -> UserError:
    """What an error on an image means for the person who named it."""
    advice = _IMAGE_ADVICE.get(error.errno or 0, error.strerror or str(error))
    return UserError(f"{path}: {advice}")
