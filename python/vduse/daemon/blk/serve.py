"""From the command's options to the last fact."""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator
from contextlib import nullcontext
from time import monotonic

from vduse.channel.recording import Header
from vduse.daemon import logs, notify
from vduse.daemon.blk.choose import EMBEDDED_PROFILE, Way, choose, open_attachment, other_way
from vduse.daemon.blk.facts import Counted, Ended, Facts, InUse, Resized
from vduse.daemon.blk.service import Service
from vduse.daemon.commands import BlkOptions
from vduse.daemon.errors import Stopped, UserError
from vduse.daemon.limits import check_open_files
from vduse.daemon.signals import Stopper
from vduse.daemon.table import Context
from vduse.daemon.trace.tracing import Tracing, header_of_embedded, header_of_kernel
from vduse.daemon.watch.serving import metrics_served

log = logging.getLogger(__name__)

#: Fds of the process and some clients, and of each virtqueue, both sides together, rounded up.
_FDS = 128
_FDS_PER_QUEUE = 9
#: Seconds between two looks at the device.
_LOOK = 1.0


def serve(options: BlkOptions, context: Context) -> Generator[Facts]:
    """Serving once it can be reached, Counted at each SIGUSR1, Resized when the backend was, InUse
    where the end has to wait, Ended at the end. UserError: what the person can put right."""
    backend, stopper = options.backend, context.stopper
    if backend is None:
        raise UserError("name what stores the bytes: an image, null, memory, python:MODULE:CLASS")
    logs.adjust(format=options.log_format, level=options.log_level)
    way = choose(options)
    check_open_files(_FDS + _FDS_PER_QUEUE * options.queues)
    _block_requests()
    tracing = Tracing(options.trace, options.trace_json, _header(way))
    with stopper.held(twice_ends=True), tracing:
        with other_way(way):
            attachment = open_attachment(way, options, backend, tracing)
            stopper.last_words = attachment.left
            service = Service(options, backend, way, attachment)
        begin = monotonic()
        try:
            with metrics_served(options.metrics, service.watched):
                notify.ready()
                yield service.facts()
                reason = yield from _watch(service, options.name, stopper)
        except BaseException:
            if (failure := service.close()) is not None:
                log.error("%s: %s", options.name, failure)
            raise
        broken = service.broken() is not None
        statistics, seconds = service.statistics(), monotonic() - begin
        if (failure := service.close()) is not None:
            reason, broken = (f"{reason}; {failure}" if broken else failure), True
        yield Ended("ended", options.name, reason, broken, seconds, statistics)


def _watch(service: Service, name: str, stopper: Stopper) -> Generator[Facts, None, str]:
    """What happens until the end; returns the signal's name, or what broke."""
    stopped = None
    while (reason := service.broken()) is None:
        if stopped is not None and not service.users():
            return stopped
        try:
            # Stopped is raised once: later signals are for the second one's handler.
            with stopper.released() if stopped is None else nullcontext():
                asked = signal.sigtimedwait({signal.SIGUSR1}, _LOOK)
        except Stopped as signalled:
            stopped = signal.Signals(signalled.exit_code - 128).name
            if users := service.users():
                yield InUse("in use", name, users)
            continue
        if asked is not None:
            yield Counted("statistics", service.statistics())
        elif (size := service.resized()) is not None:
            yield Resized("resized", size)
    return reason


def _header(way: Way) -> Header:
    return header_of_kernel() if way.via == "kernel" else header_of_embedded(EMBEDDED_PROFILE)


def _block_requests() -> None:
    """SIGUSR1 waits for :func:`_watch`, to the end of the process: who asks too late must not
    change its exit code. Before there are threads: they inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
