"""The stage of the hostile tests: a victim device and a neighbour in one process, on one pool of
workers, and what must hold whatever happens to the victim."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, Self

import pytest

from vduse.bus.driver import Driver
from vduse.bus.errors import DeviceRefused
from vduse.channel.embedded import inherited
from vduse.testing.harness import BlkPark, BlkSpec, LocalDevice
from vduse.testing.load import Spec, run_ours
from vduse.testing.rawdriver import S_OK, T_IN, T_OUT, RawDriver

VICTIM = "victim"
NEIGHBOUR = "neighbour"
#: Bytes of the victim's disk.
SIZE = 1 << 20
#: Seconds after which something that must happen has not.
LIMIT = 60.0


class LogWatch(logging.Handler):
    """Keeps what is logged, and lets tests wait for a line."""

    def __init__(self, level: int | str = logging.ERROR) -> None:
        super().__init__(level)
        self._heard = threading.Condition()
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        with self._heard:
            self._lines.append(record.getMessage())
            self._heard.notify_all()

    @property
    def lines(self) -> list[str]:
        """All lines so far."""
        with self._heard:
            return list(self._lines)

    def wait_for(self, start: str) -> str:
        """The first line that starts so, within :data:`LIMIT`."""
        with self._heard:
            self._heard.wait_for(lambda: self._find(start) is not None, LIMIT)
            line = self._find(start)
        assert line is not None, f"no line {start!r} in {self._lines}"
        return line

    def clear(self) -> None:
        """Forgets."""
        with self._heard:
            self._lines.clear()

    def _find(self, start: str) -> str | None:
        return next((line for line in self._lines if line.startswith(start)), None)

    def __enter__(self) -> Self:
        logging.getLogger("vduse").addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logging.getLogger("vduse").removeHandler(self)


class Stage:
    """The victim under vhost_vdpa, the neighbour under virtio_vdpa."""

    def __init__(self, park: BlkPark, log: LogWatch, **victim: Any) -> None:
        self.park = park
        self.log = log
        self.spec = BlkSpec(
            name=VICTIM,
            size=SIZE,
            queue_size=16,
            packed=True,
            serial="victim-serial",
            **victim,
        )
        park.add(self.spec, driver="vhost_vdpa")
        park.add(BlkSpec(name=NEIGHBOUR, size=4 << 20))
        self._control = inherited(park.framework.control())
        # What is made at first use and kept is made now.
        for packed in (False, True):
            self.check_whole(packed=packed)
        self.check_neighbour()

    @property
    def device(self) -> LocalDevice:
        """The victim's device side."""
        return self.park.device(VICTIM)

    @contextmanager
    def raw(self, **options: Any) -> Iterator[RawDriver]:
        """A raw driver of the victim, not started; its device file is opened for it."""
        driver: Driver = self.park.framework.bus.vhost(VICTIM).open()
        try:
            with RawDriver(driver, **options) as raw:
                yield raw
        finally:
            driver.close()

    # --- what must hold ---------------------------------------------------------------------

    @contextmanager
    def neighbour_at_work(self) -> Iterator[None]:
        """Verified I/O of the neighbour beside the block, and once more after it."""
        failures: list[BaseException] = []

        def work() -> None:
            try:
                self.check_neighbour()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            thread.join()
        assert not failures, failures
        self.check_neighbour()

    def check_neighbour(self) -> None:
        """A load of mixed requests on the neighbour, whose data is verified."""
        driver = self.park.framework.disk(NEIGHBOUR).driver
        spec = Spec(op="mixed", requests=100, depth=8, verify=True, span=1 << 20)
        report = run_ours(driver, spec)
        assert report.errors == 0, report.messages

    def check_broken(self, message: str, queue: int = 0) -> None:
        """The victim stopped for this reason, and said so: device, queue and cause in the log,
        queue and cause as an event. Its driver finds out by EIO where it asks for the queue's
        state: VDUSE has no way to set DEVICE_NEEDS_RESET."""
        cause = f"virtqueue {queue}: {message}"
        line = self.log.wait_for(f"{VICTIM}: stopped until the driver resets it: ")
        assert line == f"{VICTIM}: stopped until the driver resets it: {cause}"
        assert self.device.blk.fault == cause

    def check_whole(self, **options: object) -> None:
        """A driver that behaves gets served."""
        data = os.urandom(4096)
        with self.raw(**options) as raw:
            assert raw.start()
            if self.spec.read_only:
                assert raw.request(T_IN, 8, room=512)[0] == S_OK
                return
            assert raw.request(T_OUT, 8, data) == (0, b"", 1)
            assert raw.request(T_IN, 8, room=4096) == (0, data, 4097)

    def settled(self, reached: Callable[[], bool]) -> bool:
        """Whether a state is reached, letting the framework's service thread go on until then:
        it closes what others have left. Bounded by :data:`LIMIT`."""
        deadline = monotonic() + LIMIT
        while not reached():
            if monotonic() > deadline:
                return False
            self._control.get_api_version()
        return True

    def close(self) -> None:
        self._control.close()


def open_fds() -> list[str]:
    """What this process's fds are."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the listing's own
            continue
    return sorted(name.split(":")[0] for name in found)


def threads() -> int:
    """Threads of this process."""
    return len(os.listdir("/proc/self/task"))


@contextmanager
def nothing_left(stage: Stage) -> Iterator[None]:
    """After the block the process has no more fds and threads than before."""
    fds, tasks = open_fds(), threads()
    yield
    flat = stage.settled(lambda: len(open_fds()) <= len(fds) and threads() <= tasks)
    assert flat, (fds, open_fds(), tasks, threads())


def break_victim(
    stage: Stage, act: Callable[[RawDriver], None], message: str, **options: object
) -> None:
    """``act`` of a hostile driver stops the victim for the reason ``message``, which hurts nobody
    else and ends with the reset; see :class:`Stage`."""
    stage.log.clear()
    with nothing_left(stage), stage.neighbour_at_work(), stage.raw(**options) as raw:
        assert raw.start()
        act(raw)
        raw.kick()
        stage.check_broken(message)
        with pytest.raises(DeviceRefused):
            raw.driver.get_vring_base(0)
    assert len(stage.log.lines) == 1
    stage.check_whole(packed=raw.packed)
