"""What a process may do, by its pid: capabilities and locked memory."""

from __future__ import annotations

import resource
from pathlib import Path

#: linux/capability.h
CAP_NET_ADMIN = 12


def _status_field(pid: int, name: str) -> str | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":")[1].strip() for line in lines if line.startswith(name)), None)


def has_capability(pid: int, capability: int) -> bool:
    """Whether process ``pid`` has it in effect; False where that cannot be seen."""
    effective = _status_field(pid, "CapEff:")
    return effective is not None and bool(int(effective, 16) >> capability & 1)


def lockable_bytes(pid: int) -> int | None:
    """What RLIMIT_MEMLOCK of process ``pid`` leaves for pinned pages; None: no limit.
    OSError: no such process, or another user's."""
    soft, _ = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return None
    pinned = _status_field(pid, "VmPin:")
    return max(0, soft - (int(pinned.split()[0]) * 1024 if pinned else 0))
