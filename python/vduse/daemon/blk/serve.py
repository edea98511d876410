"""From the command's options to the last fact."""

from __future__ import annotations

import signal
from collections.abc import Generator
from time import monotonic

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
    _block_requests()
    with context.stopper.held(twice_ends=True):
        service = Service(options, backend, path)
        begin = monotonic()
        try:
            yield service.facts()
            reason = yield from _watch(service, context.stopper)
        except BaseException:
            service.close()
            raise
        broken = service.broken() is not None
        statistics, seconds = service.statistics(), monotonic() - begin
        if (failure := service.close()) is not None and not broken:
            reason, broken = failure, True
        yield Ended("ended", options.name, reason, broken, seconds, statistics)


def _watch(service: Service, stopper: Stopper) -> Generator[Facts, None, str]:
    """What happens until the end; returns the signal's name, or what broke."""
    while (reason := service.broken()) is None:
        try:
            with stopper.released():
                asked = signal.sigtimedwait({signal.SIGUSR1}, _LOOK)
        except Stopped as stopped:
            return signal.Signals(stopped.exit_code - 128).name
        if asked is not None:
            yield Counted("statistics", service.statistics())
        elif (size := service.resized()) is not None:
            yield Resized("resized", size)
    return reason


def _block_requests() -> None:
    """SIGUSR1 waits for :func:`_watch`, to the end of the process: who asks too late must not
    change its exit code. Before there are threads: they inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
