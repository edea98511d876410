"""Programs that serve NBD on a unix socket, as children: ours, and others to set beside it.

with blk_server("memory", "--size", "1G", "--queues", "4") as server:
    subprocess.run(["nbdinfo", server.uri], check=True)
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

#: Seconds a server has to end by itself once told to.
PATIENCE = 30.0

# systemd's protocol for sockets made before the program: the socket is fd 3, and LISTEN_PID the
# program's own pid, which only the child knows.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Cpu:
    """Seconds of CPU, all threads."""

    user: float
    system: float

    @property
    def total(self) -> float:
        """Both."""
        return self.user + self.system

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(self.user - earlier.user, self.system - earlier.system)


class NbdChild:
    """A child that serves NBD, and the socket it serves on."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process = process
        self.socket = path

    @property
    def uri(self) -> str:
        """Where the default export is, for NBD clients."""
        return f"nbd+unix:///?socket={quote(str(self.socket))}"

    def cpu(self) -> Cpu:
        """CPU used until now, of threads that have ended too; in steps of 10 ms."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        # The program's name is in brackets and may hold anything; utime and stime are the 12th
        # and 13th field after it (proc(5)).
        fields = stat.rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return Cpu(int(fields[11]) / tick, int(fields[12]) / tick)

    def stop(self) -> int:
        """SIGTERM; its exit status. One that does not end is killed: TimeoutExpired."""
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextmanager
def blk_server(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[NbdChild]:
    """``vduse blk ARGUMENTS --nbd SOCKET``, once it serves. ChildProcessError if it does not.
    ``env`` is added to the environment."""
    with TemporaryDirectory(prefix="vduse-nbd-") as folder:
        path = Path(folder, "nbd.sock")
        blk = [sys.executable, "-m", "vduse.daemon", "blk", "--json"]
        command = [*blk, "--nbd", str(path), *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        with _stopped(NbdChild(process, path)) as server:
            assert process.stdout is not None
            # Its first fact is where it can be reached.
            if not process.stdout.readline():
                raise ChildProcessError(f"{' '.join(command)}: ended with {process.wait()}")
            yield server


@contextmanager
def other_server(
    command: Sequence[str], env: Mapping[str, str] | None = None
) -> Iterator[NbdChild]:
    """A program that takes its listening socket from systemd (``nbdkit``, ``qemu-nbd -t``): it
    can be connected to at once. ``env`` is added to the environment."""
    with TemporaryDirectory(prefix="vduse-nbd-") as folder:
        path = Path(folder, "nbd.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(16)
            fd = listener.fileno()
            process = subprocess.Popen(
                [sys.executable, "-ISc", _ACTIVATE, str(fd), *command],
                pass_fds=[fd],
                env={**os.environ, **(env or {})},
                text=True,
            )
        with _stopped(NbdChild(process, path)) as server:
            yield server


@contextmanager
def _stopped(server: NbdChild) -> Iterator[NbdChild]:
    try:
        yield server
    finally:
        server.stop()
