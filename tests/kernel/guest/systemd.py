"""A real systemd in the guest: process 1 of a PID namespace, with udev's daemon beside it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kernel.guest.bed import eventually, run

_UNITS = Path("/run/bed-units")
_SOCKET = Path("/run/systemd/private")
_TARGETS = ("sysinit", "basic", "shutdown", "bed")


@contextmanager
def udevd() -> Iterator[None]:
    """udev's daemon, with the rules that are installed."""
    run("/lib/systemd/systemd-udevd", "--daemon")
    try:
        yield
    finally:
        run("udevadm", "control", "--exit")


class Manager:
    """The service manager."""

    def __init__(self, unshare: int) -> None:
        children = Path(f"/proc/{unshare}/task/{unshare}/children")
        self._pid = eventually(lambda: children.read_text().split(), "systemd's process")[0]
        eventually(_SOCKET.exists, "systemd's socket")

    def ctl(self, *words: str) -> None:
        """systemctl, which must succeed."""
        run("nsenter", f"--target={self._pid}", "--pid", "--mount", "systemctl", *words)

    def main_pid(self, unit: str) -> int | None:
        """The process of vduse@NAME, by its number here; None: there is none."""
        group = f"/sys/fs/cgroup/system.slice/system-vduse.slice/{unit}/cgroup.procs"
        try:
            found = Path(group).read_text().split()
        except OSError:
            return None
        return int(found[0]) if found else None


@contextmanager
def systemd(unit: Path, settings: str) -> Iterator[Manager]:
    """systemd with this template unit and nothing else; ``settings``: a drop-in for it."""
    drop_in = _UNITS / f"{unit.name}.d"
    drop_in.mkdir(parents=True)
    for target in _TARGETS:
        (_UNITS / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (_UNITS / unit.name).write_bytes(unit.read_bytes())
    (drop_in / "bed.conf").write_text(settings)
    _SOCKET.unlink(missing_ok=True)
    argv = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    argv += ["/lib/systemd/systemd", "--system", "--unit=bed.target"]
    argv += ["--show-status=0", "--log-target=kmsg"]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": str(_UNITS), "container": "bed"}
    with subprocess.Popen(argv, env=environment) as process:
        try:
            manager = Manager(process.pid)
            manager.ctl("is-system-running", "--wait")
            yield manager
        finally:
            process.kill()  # and the namespace with it
