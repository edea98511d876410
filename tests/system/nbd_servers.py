"""Other projects' NBD servers, on a Unix socket or a port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class NbdServer:
    """A server that can be killed and started again at the same place."""

    def __init__(self, argv: Sequence[str], path: Path) -> None:
        """``path``: the socket that ``argv`` makes it listen at."""
        self._argv = list(argv)
        #: Of its socket.
        self.path = path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def spec(self) -> str:
        """As the backend is spelled."""
        return f"nbd:unix:{self.path},open-timeout=60s"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """While it runs."""
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Returns before it listens."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._process = subprocess.Popen(self._argv)

    def kill(self) -> None:
        """SIGKILL: it has no time for anything."""
        self.process.kill()
        self.process.wait()

    def stall(self) -> None:
        """Stops it where it stands."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends :meth:`stall`."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def nbdkit(folder: Path, *arguments: str) -> NbdServer:
    """nbdkit with this plugin, filters and parameters; it must be started."""
    path = folder / "nbdkit.sock"
    return NbdServer(["nbdkit", "--foreground", "--unix", os.fspath(path), *arguments], path)


def qemu_nbd(folder: Path, image: Path, *arguments: str) -> NbdServer:
    """qemu-nbd with a raw image; it must be started."""
    path = folder / "qemu-nbd.sock"
    argv = ["qemu-nbd", "--persistent", "--format=raw", f"--socket={path}"]
    return NbdServer([*argv, *arguments, os.fspath(image)], path)


def listener(folder: Path) -> tuple[socket.socket, str]:
    """A server of the test's own: a socket that listens, and its spelling."""
    path = folder / "own.sock"
    own = socket.socket(socket.AF_UNIX)
    own.bind(os.fspath(path))
    own.listen()
    return own, f"nbd:unix:{path}"
