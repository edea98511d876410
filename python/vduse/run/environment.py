"""What a program finds around it: a folder of its own for temporary files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping

#: A manager of services waits for this command, not for the program.
_NOT_ITS_OWN = {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """For one run, over all its starts: what a daemon writes there to go on after a crash
    (libvduse's reconnect log, our storage daemon's in-flight records) is for the next start, and
    for no other run. OSError."""
    return tempfile.TemporaryDirectory(prefix="vduse-run-", ignore_cleanup_errors=True)


def environment(folder: str, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """``base``, else this process's environment, with ``folder`` for temporary files and for what
    systemd's RuntimeDirectory= would give."""
    kept = os.environ if base is None else base
    own = {name: value for name, value in kept.items() if name not in _NOT_ITS_OWN}
    return {**own, "TMPDIR": folder, "RUNTIME_DIRECTORY": folder}
