"""What the system refuses, in words that say what to do."""

from __future__ import annotations

import errno

#: EMFILE.
NO_FDS_LEFT = (
    "too many open files for this process: raise the limit (ulimit -n, LimitNOFILE= of its unit)"
)


def in_words(error: OSError) -> str:
    """One line."""
    if error.errno == errno.EMFILE:
        return NO_FDS_LEFT
    return error.strerror or str(error)
