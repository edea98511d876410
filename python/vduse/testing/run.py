"""`vduse run` as a child, and what it says.

with vduse_run("my-daemon", "--image", "disk.img", options=["--nbd", "disk.sock"]) as run:
    run.wait_for("serving")
    os.kill(run.daemon, signal.SIGKILL)
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

#: Seconds that what is waited for may take.
PATIENCE = 60.0
#: The command, for a child.
VDUSE = (sys.executable, "-m", "vduse.daemon")


class RunChild:
    """The command, its daemon, and the facts it has printed (``--json``)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Of a child whose output is a pipe."""
        assert process.stdout is not None
        self.process = process
        #: All facts so far.
        self.facts: list[dict[str, Any]] = []
        self._unclaimed: list[dict[str, Any]] = []
        self._output = process.stdout
        self._rest = b""
        os.set_blocking(self._output.fileno(), False)

    @property
    def daemon(self) -> int:
        """Process id of the daemon that was started last. LookupError: none was."""
        started = [fact for fact in self.facts if fact["event"] == "started"]
        if not started:
            raise LookupError("no daemon was started")
        pid = started[-1]["pid"]
        assert isinstance(pid, int)
        return pid

    def wait_for(self, event: str, **having: object) -> dict[str, Any]:
        """The first fact that is such an event and has these values, which no call has returned
        before. ChildProcessError: the command ended without it; TimeoutError."""
        end = monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while (fact := self._claim(event, having)) is None:
                if not selector.select(max(0.0, end - monotonic())):
                    raise TimeoutError(f"no {event!r} in time; there was {self.facts}")
                if not (more := self._output.read()):
                    status = self.process.wait()
                    raise ChildProcessError(f"no {event!r}; ended with {status}: {self.facts}")
                self._hear(more)
        return fact

    def count(self) -> dict[str, Any]:
        """Its counters now."""
        self.process.send_signal(signal.SIGUSR1)
        return self.wait_for("statistics")

    def stop(self) -> int:
        """SIGTERM; its exit code. One that does not end is killed: TimeoutExpired."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Until it ends by itself; its exit code. One that does not is killed: TimeoutExpired."""
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.close()

    def close(self) -> None:
        """Kills it, if it has not ended: the daemon dies with it."""
        self.process.kill()
        self.process.wait()
        self._output.close()

    def _claim(self, event: str, having: Mapping[str, object]) -> dict[str, Any] | None:
        for fact in self._unclaimed:
            if fact["event"] == event and fact.items() >= having.items():
                self._unclaimed.remove(fact)
                return fact
        return None

    def _hear(self, data: bytes) -> None:
        """Takes facts from what was read; other lines are the daemon's own."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                fact = json.loads(line)
            except ValueError:
                continue
            if isinstance(fact, dict) and "event" in fact:
                self.facts.append(fact)
                self._unclaimed.append(fact)


@contextmanager
def vduse_run(
    *daemon: str,
    options: Sequence[str] = (),
    command: Sequence[str] = VDUSE,
    env: Mapping[str, str] | None = None,
    **popen: Any,
) -> Iterator[RunChild]:
    """``vduse run OPTIONS -- DAEMON``, killed at the end if it has not ended. ``env`` is added to
    the environment; ``popen``: more for :class:`subprocess.Popen`."""
    process = subprocess.Popen(
        [*command, "run", "--json", *options, "--", *daemon],
        stdout=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        **popen,
    )
    run = RunChild(process)
    try:
        yield run
    finally:
        run.close()
