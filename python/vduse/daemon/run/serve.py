"""From the command's options to the last fact."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import Empty

from vduse.daemon import notify
from vduse.daemon.errors import Stopped, UserError
from vduse.daemon.limits import check_open_files
from vduse.daemon.run import companions
from vduse.daemon.run.commands import RunOptions
from vduse.daemon.run.facts import Ending, Facts, Found, Serving
from vduse.daemon.run.places import Places
from vduse.daemon.run.session import Count, End, Session
from vduse.daemon.signals import Stopper
from vduse.daemon.table import Context
from vduse.run.checks import check_host, check_program
from vduse.run.errors import ProgramError
from vduse.run.faults.spec import help_text

#: Fds of the process, one device and some clients, rounded up.
_FDS = 128
#: Seconds between two looks at the devices.
_LOOK = 1.0


def serve(options: RunOptions, context: Context) -> Generator[Facts]:
    """Started and Serving as they come, Exited and Broken, Counted at each SIGUSR1, Ended at the
    end. UserError: what the person can put right."""
    if "help" in options.fault:
        yield Found("found", "fault", True, tuple(help_text().splitlines()), {})
        return
    if not options.program:
        raise UserError("say which program, behind --: vduse run --nbd disk.sock -- DAEMON ARGS")
    check_open_files(_FDS)
    with _told():
        check_host()
        check_program(options.program[0], os.environ)
    stopper = context.stopper
    with stopper.held(twice_ends=True):
        places = Places(options)
        with stopper.released():  # a pipe is open once somebody reads it
            along = companions.make(options, _teller(context))
        session = Session(options, places, along, json=context.json)
        stopper.last_words = session.abandon
        with _told():
            session.start()
        try:
            with _counting(session):
                reason = yield from _watch(session, stopper)
            yield Ending("ending", reason)
        except BaseException:
            for _ in session.finish("nobody listens"):
                pass
            raise
        yield from session.finish(reason)


def _watch(session: Session, stopper: Stopper) -> Generator[Facts, None, str]:
    """What happens until the end; returns the signal's name, or what else ends it."""
    ready = False
    while True:
        try:
            with stopper.released():
                events: list[Facts | Count | End] = [session.events.get(timeout=_LOOK)]
        except Stopped as stopped:
            return signal.Signals(stopped.exit_code - 128).name
        except Empty:
            events = list(session.look())
        for event in events:
            match event:
                case End():
                    return event.reason
                case Count():
                    yield session.counted()
                case _:
                    if isinstance(event, Serving) and not ready:
                        ready = True
                        notify.ready()
                    yield event


def _teller(context: Context) -> Callable[[str], None]:
    """What is told while one waits."""
    return lambda line: context.err.print(line, markup=False, soft_wrap=True)


@contextmanager
def _counting(session: Session) -> Iterator[None]:
    """SIGUSR1 asks for the counters. Ignored after the end: who asks too late must not change the
    exit code."""
    former = signal.signal(signal.SIGUSR1, lambda *_: session.events.put(Count()))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN if former == signal.SIG_DFL else former)


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a program is a person's affair."""
    try:
        yield
    except ProgramError as error:
        raise UserError(str(error)) from None
