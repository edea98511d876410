"""What the process may use, looked at before anything is made."""

from __future__ import annotations

import resource

from vduse.daemon.errors import UserError


def check_open_files(needed: int) -> None:
    """A device that runs out of fds half-way is a broken one. UserError."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise UserError(f"{soft} open files are allowed, {needed} are needed: ulimit -n {needed}")
