"""System calls of another program, counted by the kernel's tracepoints (perf): they do not slow
it down as strace does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import cache

_EVENT = "raw_syscalls:sys_enter"


def counted(pid: int, load: Callable[[], int]) -> float | None:
    """System calls that ``pid`` made for each request that ``load`` says it was; None: they cannot
    be counted here."""
    if not _available():
        return None
    control, to_perf = os.pipe()
    from_perf, acknowledge = os.pipe()
    command = ["perf", "stat", "-x,", "-e", _EVENT, "-p", f"{pid}", "--delay=-1"]
    perf = subprocess.Popen(
        [*command, "--control", f"fd:{control},{acknowledge}"],
        pass_fds=[control, acknowledge],
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(control)
    os.close(acknowledge)
    try:
        # It does so from the moment that it acknowledges.
        for word in ("enable", "disable"):
            os.write(to_perf, f"{word}\n".encode())
            os.read(from_perf, 16)
            if word == "enable":
                requests = load()
    finally:
        perf.send_signal(signal.SIGINT)
        _, text = perf.communicate()
        os.close(to_perf)
        os.close(from_perf)
    return _count(text) / requests


@cache
def _available() -> bool:
    if shutil.which("perf") is None:
        return False
    tried = subprocess.run(
        ["perf", "stat", "-x,", "-e", _EVENT, "true"], capture_output=True, text=True
    )
    return tried.returncode == 0 and _EVENT in tried.stderr


def _count(text: str) -> int:
    """Of what ``perf stat -x,`` prints: the count is its first field."""
    line = next(line for line in text.splitlines() if _EVENT in line)
    return int(line.split(",")[0])
