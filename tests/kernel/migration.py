"""A small guest with one vhost-user disk that can move: QEMU, its console, its monitor."""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from tests.kernel.fetch import Kernel
from tests.kernel.qemu import Qemu
from tests.kernel.vhost_user import vhost_user_disk
from tests.kernel.vm import Machine, shared_memory

#: Seconds for a line, and for what the monitor is asked.
_PATIENCE = 200.0


class Monitor:
    """QMP, as far as it is needed here."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_PATIENCE)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("r")
        self._line()
        self.do("qmp_capabilities")

    def do(self, command: str, **arguments: object) -> Any:
        """What a command returns. AssertionError: it failed."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            line = self._line()
            assert "error" not in line, line
            if "return" in line:
                return line["return"]

    def migrated(self) -> str:
        """Waits for the end of a migration; how it ended."""
        while True:
            line = self._line()
            if line.get("event") == "MIGRATION" and line["data"]["status"] in (
                *("completed", "failed", "cancelled"),
            ):
                return str(line["data"]["status"])

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _line(self) -> dict[str, Any]:
        line = self._file.readline()
        assert line, "QEMU has ended"
        found: dict[str, Any] = json.loads(line)
        return found


class MovingGuest:
    """QEMU, from its start; its serial port is its standard input and output."""

    def __init__(self, command: Sequence[str], monitor: Path) -> None:
        self._monitor = monitor
        self.process = subprocess.Popen(
            [*command, "-qmp", f"unix:{monitor},server=on,wait=off"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.process.stdout, selectors.EVENT_READ)
        self._console = b""
        self._read = 0

    @property
    def console(self) -> str:
        """All it has printed."""
        return self._console.decode(errors="replace")

    def line(self) -> str:
        """The guest's next line. AssertionError: it has ended, or takes long."""
        while True:
            end = self._console.find(b"\n", self._read)
            if end < 0:
                self._more()
                continue
            line = self._console[self._read : end].decode(errors="replace").strip()
            self._read = end + 1
            if line.startswith("guest: "):
                return line.removeprefix("guest: ")

    def say(self, line: str) -> None:
        """On its console."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Of this QEMU, once it listens."""
        end = monotonic() + _PATIENCE
        while not self._monitor.exists():
            assert self.process.poll() is None and monotonic() < end, self.console
            self._selector.select(0.05)
        monitor = Monitor(self._monitor)
        try:
            yield monitor
        finally:
            monitor.close()

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.communicate()
        self._selector.close()

    def _more(self) -> None:
        assert self.process.stdout is not None
        assert self._selector.select(_PATIENCE), f"no line in time; the console:\n{self.console}"
        more = self.process.stdout.read1(1 << 16)  # type: ignore[attr-defined]
        assert more, f"the guest has ended; its console:\n{self.console}"
        self._console += more


def command_line(
    qemu: Qemu, kernel: Kernel, initramfs: Path, disk: Path, *, queues: int, packed: bool
) -> list[str]:
    """QEMU's, of a guest of 128 MiB with the disk at a vhost-user socket."""
    # Zeroed by the guest first, a page that the device writes would be seen to change anyway.
    options = "console=ttyS0 quiet oops=panic panic=-1 mitigations=off init_on_alloc=0"
    return [
        *qemu.command("qemu-system-x86_64"),
        *("-machine", "q35", "-accel", "tcg,tb-size=64", "-cpu", "max"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "128"),
        *shared_memory(Machine(memory=128)),
        *("-kernel", str(kernel.image), "-initrd", str(initramfs), "-append", options),
        *("-serial", "stdio"),
        *vhost_user_disk(disk, queues=queues, packed=packed),
    ]
