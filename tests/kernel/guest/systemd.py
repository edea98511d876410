"""A real systemd in the guest: process 1 of a PID namespace, with udev's daemon beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kernel.guest.bed import run
from tests.waiting import eventually

_UNITS = Path("/run/bed-units")
_SOCKET = Path("/run/systemd/private")
#: There while systemd runs a machine (sd_booted(3)).
_BOOTED = Path("/run/systemd/system")
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

    def ctl(self, *words: str) -> str:
        """systemctl, which must succeed; what it printed."""
        return self._inside("systemctl", *words)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit's."""
        return self.ctl("show", f"--property={name}", "--value", unit).strip()

    def main_pid(self, unit: str) -> int | None:
        """The first process of a service, by its number here; None: there is none."""
        try:
            found = self._processes(unit).read_text().split()
        except OSError:
            return None
        return int(found[0]) if found else None

    def shorten_watchdog(self, unit: str) -> None:
        """To a second, for the process that runs now: a watchdog that is short from the start
        would find a busy machine. As the service itself may; its drop-in has NotifyAccess=all."""
        script = 'echo $$ >"$1"; shift; exec env "$@"'
        notify = ("NOTIFY_SOCKET=/run/systemd/notify", "systemd-notify", "WATCHDOG_USEC=1000000")
        self._inside("sh", "-ec", script, "sh", str(self._processes(unit)), *notify)

    def _processes(self, unit: str) -> Path:
        return Path(f"/sys/fs/cgroup{self.show(unit, 'ControlGroup')}/cgroup.procs")

    def _inside(self, *argv: str) -> str:
        return run("nsenter", f"--target={self._pid}", "--pid", "--mount", *argv)


@contextmanager
def systemd(service: Path, settings: str, *others: Path) -> Iterator[Manager]:
    """systemd with this template unit, the ``others`` and nothing else; ``settings``: a drop-in for
    the first."""
    drop_in = _UNITS / f"{service.name}.d"
    drop_in.mkdir(parents=True)
    for target in _TARGETS:
        (_UNITS / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    for unit in (service, *others):
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
            process.wait()
            shutil.rmtree(_UNITS)
            shutil.rmtree(_BOOTED)
