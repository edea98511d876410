"""The stage of the hostile vhost-user tests: a victim and a neighbour, each behind a socket of its
own, in one process and on one pool of workers."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic

from tests.system.stage import LIMIT, LogWatch, open_fds, threads
from tests.system.vhost_user_driver import VhostUserDriver
from tests.unit.vhost_user_front_end import FrontEnd, u64
from vduse.control.vhost_user import Request
from vduse.exports.vhost_user import VhostUserServer
from vduse.testing.closing import Closing
from vduse.testing.harness import BlkPark, BlkSpec
from vduse.testing.load import Spec, run_vhost_user
from vduse.testing.rawdriver import S_OK, T_IN, T_OUT, RawDriver

VICTIM, NEIGHBOUR = "victim", "neighbour"
#: Virtqueues of the victim, and descriptors of each.
QUEUES, QUEUE_SIZE = 2, 16
#: The log's word for a connection that ends by a fault of the front end's.
CLOSED = f"vhost-user {VICTIM}: connection closed: "


class VhostUserStage(Closing):
    """Two servers; whatever a front end does to the one, the other is not to notice."""

    def __init__(self) -> None:
        with ExitStack() as undo:
            self.log = undo.enter_context(LogWatch("WARNING"))
            self.park = undo.enter_context(BlkPark())
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="vduse-"))
            self.servers: dict[str, VhostUserServer] = {}
            for spec in (
                BlkSpec(
                    name=VICTIM,
                    size=1 << 20,
                    queues=QUEUES,
                    queue_size=QUEUE_SIZE,
                    packed=True,
                    serial="victim-serial",
                ),
                BlkSpec(name=NEIGHBOUR, size=4 << 20),
            ):
                self.park.add(spec, driver="vhost_vdpa")
                vhost = self.park.framework.bus.vhost(spec.name)
                path = os.path.join(folder, spec.name)
                server = VhostUserServer(vhost, path, name=spec.name)
                self.servers[spec.name] = undo.enter_context(server)
            self._undo = undo.pop_all()
        # What is made at first use and kept is made now.
        self.check_whole()
        self.check_whole(packed=True)
        self.check_neighbour()

    @property
    def path(self) -> str:
        """The victim's socket."""
        return self.servers[VICTIM].path

    @contextmanager
    def front_end(self) -> Iterator[FrontEnd]:
        """A front end of the victim that has said nothing yet."""
        front = FrontEnd(self.path)
        try:
            yield front
        finally:
            front.close()

    @contextmanager
    def guest(self, name: str = VICTIM, **options: object) -> Iterator[RawDriver]:
        """A raw driver on the socket, its features agreed; not started. Its connection may be
        closed by either side."""
        driver = VhostUserDriver(self.servers[name].path)
        with ExitStack() as undo:
            undo.callback(driver.hang_up)
            raw = RawDriver(driver, **{"size": QUEUE_SIZE, **options})  # type: ignore[arg-type]
            try:
                yield raw
            finally:
                driver.hang_up()
                raw.close()

    @property
    def lines(self) -> list[str]:
        """What the victim's front door said; its device has words of its own."""
        return [line for line in self.log.lines if line.startswith(f"vhost-user {VICTIM}: ")]

    # --- what must hold ---------------------------------------------------------------------

    @contextmanager
    def nobody_hurt(self) -> Iterator[None]:
        """The neighbour's data is right beside the block and after it; and as
        :meth:`nothing_left`."""
        with self.nothing_left(), self.neighbour_at_work():
            yield

    @contextmanager
    def nothing_left(self) -> Iterator[None]:
        """After the block the victim serves the next front end, and no fd, no mapping of a front
        end's memory and no thread stays. Lines of the log are those of the block."""
        self.log.clear()
        fds, tasks = open_fds(), threads()
        yield
        self.check_whole()
        held = self.settled(lambda: len(open_fds()) <= len(fds) and threads() <= tasks)
        assert held, (fds, open_fds(), tasks, threads())
        assert self.settled(lambda: not guest_mappings()), guest_mappings()

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
        """A load of mixed requests on the neighbour's socket, whose data is verified."""
        spec = Spec(op="mixed", requests=100, depth=8, verify=True, span=1 << 20)
        report = run_vhost_user(self.servers[NEIGHBOUR].path, spec)
        assert report.errors == 0, report.messages

    def check_whole(self, **options: object) -> None:
        """A front end that behaves gets served."""
        with self.guest(**options) as raw:
            assert raw.start()
            check_served(raw)

    def settled(self, reached: Callable[[], bool]) -> bool:
        """Whether a state is reached; until then front ends come and go, so that the servers'
        threads have done what was before. Bounded by :data:`~tests.system.stage.LIMIT`."""
        deadline = monotonic() + LIMIT
        while not reached():
            if monotonic() > deadline:
                return False
            for server in self.servers.values():
                front = FrontEnd(server.path)
                front.get(Request.GET_QUEUE_NUM)
                front.close()
                while server.connected and monotonic() < deadline:
                    threading.Event().wait(0.001)
        return True

    def close(self) -> None:
        self._undo.close()


def check_served(raw: RawDriver) -> None:
    """A write and a read of a driver that was started."""
    data = os.urandom(4096)
    assert raw.request(T_OUT, 8, data) == (S_OK, b"", 1)
    assert raw.request(T_IN, 8, room=4096) == (S_OK, data, 4097)


def check_answers(front: FrontEnd) -> None:
    """The connection lives."""
    assert front.get(Request.GET_QUEUE_NUM) == u64(QUEUES)


def guest_mappings() -> list[str]:
    """What this process has mapped of the memory of raw drivers and of the tests."""
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "/memfd:vduse-rings" in line or "/memfd:hostile" in line]


@contextmanager
def closing(*fds: int) -> Iterator[list[int]]:
    """Fds that are closed in the end."""
    try:
        yield list(fds)
    finally:
        for fd in fds:
            with suppress(OSError):
                os.close(fd)
