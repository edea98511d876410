"""What a process may do, as /proc tells."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from vduse.framework import credentials
from vduse.framework.credentials import CAP_NET_ADMIN, has_capability, lockable_bytes


def test_capability_is_the_effective_one() -> None:
    effective = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line
    )
    expected = bool(int(effective.split()[1], 16) & 1 << CAP_NET_ADMIN)
    assert has_capability(os.getpid(), CAP_NET_ADMIN) == expected


def test_a_process_that_is_gone_has_no_capability() -> None:
    assert not has_capability(0x7FFF_FFFF, CAP_NET_ADMIN)
    with pytest.raises(ProcessLookupError):
        lockable_bytes(0x7FFF_FFFF)


@pytest.mark.parametrize(
    ("limit", "pinned", "expected"),
    [(8192, None, 8192), (8192, "4 kB", 4096), (0, "4 kB", 0), (resource.RLIM_INFINITY, "", None)],
)
def test_lockable_is_the_limit_less_what_is_pinned(
    monkeypatch: pytest.MonkeyPatch, limit: int, pinned: str | None, expected: int | None
) -> None:
    monkeypatch.setattr(credentials.resource, "prlimit", lambda pid, kind: (limit, limit))
    monkeypatch.setattr(credentials, "_status_field", lambda pid, name: pinned)
    assert lockable_bytes(1) == expected
