"""The stage of `vduse run`'s hostile tests: one framework, a neighbour that is a daemon under a
supervisor of its own, and room for a villain under another."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Self

from tests.system.stage import LIMIT, LogWatch, open_fds, threads
from vduse import _native
from vduse.bus.errors import DeviceBusy, DeviceNotFound
from vduse.framework import Framework
from vduse.framework.device import VduseDevice
from vduse.run.supervisor import Supervisor
from vduse.testing.load import Spec, run_ours

TREE = Path(__file__).parents[2]
NEIGHBOUR = "neighbour"
#: The device that villains create.
HOSTILE = "hostile"


class Program:
    """A program under the filter, answered by this framework. Its standard input and output are
    the test's."""

    def __init__(self, framework: Framework, argv: Sequence[str]) -> None:
        nodes = framework.nodes
        their_in, self._say = os.pipe()
        heard, their_out = os.pipe()
        self._heard = os.fdopen(heard, encoding="utf-8")
        self._set_up = threading.Event()
        self._exit_code: int | None = None
        try:
            self.supervised = _native.Supervised.spawn(
                argv, dict(os.environ), cwd=str(TREE), stdio=(their_in, their_out, 2)
            )
        finally:
            os.close(their_in)
            os.close(their_out)
        self._service = nodes.service
        self._supervisor = Supervisor(nodes, self.supervised, self._on_set_up)
        self._service.add(self._supervisor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _on_set_up(self, device: VduseDevice) -> None:
        self._set_up.set()

    def wait_set_up(self) -> None:
        """Until a device of its own has all its virtqueues."""
        assert self._set_up.wait(LIMIT)

    def line(self) -> str:
        """The next line that it prints; empty: it has closed its output."""
        return self._heard.readline().rstrip("\n")

    def lines(self) -> list[str]:
        """All that it prints from now on, up to its end."""
        return self._heard.read().splitlines()

    def say(self, line: str) -> None:
        """Writes to its input."""
        os.write(self._say, f"{line}\n".encode())

    def wait(self) -> int:
        """Its exit code, or the signal that has ended it, negative."""
        if self._exit_code is None:
            _, status = os.waitpid(self.supervised.pid, 0)
            self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code

    def close(self) -> None:
        """SIGKILL, if it still runs; nobody answers it or its children any more. Idempotent."""
        if self._heard.closed:
            return
        os.close(self._say)
        self._heard.close()
        self._service.discard(self._supervisor)
        assert self._supervisor.closed.wait(LIMIT)
        self.wait()
        # Whoever looks at a closed one keeps nothing of it.
        del self._supervisor, self.supervised


class RunStage:
    """A neighbour, made of ``tiny_blk`` (tests/daemons) on an image in ``folder``, under
    virtio_vdpa."""

    def __init__(self, tiny_blk: Path, folder: Path) -> None:
        self.framework = Framework()
        #: What the framework and its supervisors say.
        self.log = LogWatch(logging.INFO)
        image = folder / "neighbour.img"
        with image.open("wb") as file:
            file.truncate(4 << 20)
        self._neighbour = self.program([str(tiny_blk), NEIGHBOUR, str(image)])
        self._neighbour.wait_set_up()
        self.framework.dev_add(NEIGHBOUR)
        # What is made at first use and kept is made now.
        with self.villain("well_behaved") as villain:
            assert villain.lines() == ["done"]
        self.check_neighbour()

    def program(self, argv: Sequence[str]) -> Program:
        """One more program under a supervisor of its own. The caller closes it."""
        return Program(self.framework, argv)

    @contextmanager
    def villain(self, name: str, *arguments: str) -> Iterator[Program]:
        """A program of villains/, while the neighbour is at work: its device is gone after
        the block, and no more fds and threads are left here than there were before."""
        fds, tasks = open_fds(), threads()
        logger = logging.getLogger("vduse")
        before = logger.level
        logger.setLevel(logging.INFO)
        try:
            with self.log, self.neighbour_at_work():
                argv = [sys.executable, "-m", "tests.system.villains", name, *arguments]
                with self.program(argv) as villain:
                    yield villain
                self._destroy(HOSTILE)
        finally:
            logger.setLevel(before)
        flat = self.settled(lambda: len(open_fds()) <= len(fds) and threads() <= tasks)
        assert flat, (fds, open_fds(), tasks, threads())

    @contextmanager
    def neighbour_at_work(self) -> Iterator[None]:
        """Verified I/O of the neighbour, again and again beside the block and once after it."""
        ended = threading.Event()
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while not ended.is_set():
                    self.check_neighbour()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        assert not failures, failures
        self.check_neighbour()

    def check_neighbour(self) -> None:
        """A load of mixed requests, whose data is verified."""
        driver = self.framework.disk(NEIGHBOUR).driver
        spec = Spec(op="mixed", requests=200, depth=8, verify=True, span=1 << 20, patience=LIMIT)
        report = run_ours(driver, spec)
        assert report.errors == 0, report.messages

    def settled(self, reached: Callable[[], bool]) -> bool:
        """Whether a state is reached within :data:`~tests.system.stage.LIMIT`, letting the
        framework's service thread go on until then: it closes what others have left."""
        deadline = monotonic() + LIMIT
        service = self.framework.nodes.service
        while not reached():
            if monotonic() > deadline:
                return False
            turn = threading.Event()
            service.run(turn.set)
            turn.wait(LIMIT)
        return True

    def _destroy(self, name: str) -> None:
        """Nothing where it is gone. Its program is."""
        with suppress(DeviceNotFound):  # it was never attached
            self.framework.dev_del(name)
        assert self.settled(lambda: self._is_destroyed(name))

    def _is_destroyed(self, name: str) -> bool:
        try:
            self.framework.destroy(name)
        except DeviceBusy:
            return False  # its program's node is about to be closed
        except DeviceNotFound:
            pass
        return True

    def close(self) -> None:
        """Ends the neighbour."""
        self.framework.dev_del(NEIGHBOUR)
        self._neighbour.close()
        self.framework.close()
