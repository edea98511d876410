"""From the command's options to the last fact."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from time import monotonic
from types import FrameType

from vduse.daemon.blk.facts import Counted, Ended, Facts, Resized
from vduse.daemon.blk.service import Service
from vduse.daemon.commands import BlkOptions
from vduse.daemon.errors import Stopped, UserError
from vduse.daemon.limits import check_open_files
from vduse.daemon.signals import Stopper
from vduse.daemon.table import Context

#: Fds of the process and some clients, and of each virtqueue, both sides together, rounded up.
_FDS = 128
_FDS_PER_QUEUE = 9
#: Seconds between two looks at the device.
_LOOK = 1.0


def serve(options: BlkOptions, context: Context) -> Generator[Facts]:
    """Serving once it can be reached, Counted at each SIGUSR1, Resized when the backend was, Ended
    at the end. UserError: what the person can put right."""
    backend, path = options.backend, options.nbd
    if backend is None:
        raise UserError("name what stores the bytes: an image, null, memory, python:MODULE:CLASS")
    if path is None:
        raise UserError("say where to serve: --nbd SOCKET")
    check_open_files(_FDS + _FDS_PER_QUEUE * options.queues)
    with _requests() as requests, context.stopper.held(twice_ends=True):
        service = Service(options, backend, path)
        begin = monotonic()
        try:
            yield service.facts()
            reason = yield from _watch(service, requests, context.stopper)
        except BaseException:
            service.close()
            raise
        broken = service.broken() is not None
        statistics, seconds = service.statistics(), monotonic() - begin
        if (failure := service.close()) is not None and not broken:
            reason, broken = failure, True
        yield Ended("ended", options.name, reason, broken, seconds, statistics)


def _watch(
    service: Service, requests: SimpleQueue[None], stopper: Stopper
) -> Generator[Facts, None, str]:
    """What happens until the end; returns the signal's name, or what broke."""
    while (reason := service.broken()) is None:
        try:
            with stopper.released():
                requests.get(timeout=_LOOK)
        except Empty:
            if (size := service.resized()) is not None:
                yield Resized("resized", size)
        except Stopped as stopped:
            return signal.Signals(stopped.exit_code - 128).name
        else:
            yield Counted("statistics", service.statistics())
    return reason


@contextmanager
def _requests() -> Iterator[SimpleQueue[None]]:
    """Gets an item at a SIGUSR1; those that come before it is taken are answered with it."""
    requests: SimpleQueue[None] = SimpleQueue()

    def ask(_signum: int, _frame: FrameType | None) -> None:
        if requests.empty():
            requests.put(None)

    former = signal.signal(signal.SIGUSR1, ask)
    try:
        yield requests
    finally:
        # The default would end the process: who asks too late must not change its exit code.
        late = signal.SIG_IGN if former is signal.SIG_DFL else former
        signal.signal(signal.SIGUSR1, late)
