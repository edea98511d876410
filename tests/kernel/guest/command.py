"""The `vduse` command in the guest: `vduse blk` as a child, short commands in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE
from vduse.daemon.main import main


class Blk:
    """``vduse blk ... --json``, running."""

    def __init__(self, *arguments: str, user: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vduse.daemon", "blk", *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=user,
            text=True,
            bufsize=0,
        )

    def facts(self) -> dict[str, Any]:
        """What it says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"ended with {self.process.wait()}: {self.error()}")
        facts: dict[str, Any] = json.loads(line)
        return facts

    def is_silent(self) -> bool:
        """Whether it has nothing to say now."""
        assert self.process.stdout is not None
        return not select.select([self.process.stdout], [], [], 0)[0]

    def error(self) -> str:
        """All that it says on stderr, to its end."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def signal(self, signum: signal.Signals) -> None:
        """Sends one."""
        self.process.send_signal(signum)

    def end(self) -> dict[str, Any]:
        """Its last fact, after SIGTERM."""
        self.signal(signal.SIGTERM)
        facts = self.facts()
        assert (facts["event"], self.process.wait(PATIENCE)) == ("ended", 0), facts
        return facts


@contextmanager
def blk(*arguments: str) -> Iterator[tuple[Blk, dict[str, Any]]]:
    """The command, and what it said when it served."""
    child = Blk(*arguments)
    try:
        yield child, child.facts()
    finally:
        if child.process.poll() is None:
            child.process.kill()
        child.process.communicate()


def vduse(*argv: str) -> dict[str, Any]:
    """Facts of a short command that must succeed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*argv, "--json"])
    assert code == 0, err.getvalue()
    facts: dict[str, Any] = json.loads(out.getvalue())
    return facts


def refusal(*argv: str) -> str:
    """The error of a short command that must be refused."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert main([*argv]) == 2
    return err.getvalue().removeprefix("vduse: error: ").rstrip("\n")


def refusal_of_user(uid: int, *argv: str) -> str:
    """The same, as another user: in a child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(writer, refusal(*argv).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


def left() -> tuple[list[str], list[str]]:
    """What there is on the bus, and of VDUSE."""
    bus, devices = Path("/sys/bus/vdpa/devices"), Path("/dev/vduse")
    return (
        sorted(path.name for path in bus.iterdir()),
        sorted(path.name for path in devices.iterdir() if path.name != "control"),
    )


NOTHING: tuple[list[str], list[str]] = ([], [])
