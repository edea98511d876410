"""A program under a framework: started, watched, started again, ended with all it has forked."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from vduse import _native
from vduse.bus.errors import VdpaError
from vduse.framework import Framework
from vduse.framework.device import VduseDevice
from vduse.run.backoff import Backoff
from vduse.run.errors import ProgramError
from vduse.run.processes import Family, OneChild, exit_code, signal_name
from vduse.run.supervisor import Supervisor

log = logging.getLogger(__name__)

#: Seconds that a program has between SIGTERM and SIGKILL.
PATIENCE = 10.0
#: Seconds for the service thread to let go of a dead program's nodes; it waits for nobody.
_SETTLE = 10.0


@dataclass(frozen=True)
class Exit:
    """An end of the program."""

    pid: int
    #: 128 + N after signal N.
    code: int
    #: What killed it; None: it ended by itself.
    signal: str | None
    #: Seconds until it is started again; None: it is not.
    restart: float | None


class Watcher(Protocol):
    """Who is told of a program's life. Must not wait."""

    def started(self, pid: int, starts: int) -> None:
        """It runs, for the ``starts``th time. On a thread of the program's, as all of these but
        one."""

    def set_up(self, device: VduseDevice) -> None:
        """On the framework's service thread: as of :class:`~vduse.run.supervisor.Supervisor`."""

    def exited(self, exit: Exit) -> None:
        """It has ended, and so has all that it has forked; its nodes are closed."""

    def ended(self) -> None:
        """It has ended, and is not started again."""


class _Life:
    """A program from one start to its end."""

    def __init__(self, supervised: _native.Supervised, supervisor: Supervisor, family: Family):
        self.pid = supervised.pid
        self.supervisor = supervisor
        self.family = family
        self.begin = monotonic()
        # Before anybody has waited for it: the number is nobody else's.
        self._fd = os.pidfd_open(self.pid)
        self._fd_lock = threading.Lock()

    def send(self, signum: int) -> bool:
        """To the first process. False: it has ended."""
        with self._fd_lock, suppress(ProcessLookupError):
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signum)
                return True
        return False

    def close(self) -> None:
        """All of it has ended."""
        with self._fd_lock:
            os.close(self._fd)
            self._fd = -1


class Program:
    """From :meth:`start` to :meth:`end`; methods may be called from any thread but the
    framework's service thread.

    It is of a program as of one that daemonizes: the run lasts until the last of its processes has
    ended. Where the first one ends by a signal or with an exit code that is not 0, the others are
    killed.
    """

    def __init__(
        self,
        framework: Framework,
        argv: Sequence[str],
        env: dict[str, str],
        watcher: Watcher,
        *,
        restart: bool = False,
        stdio: tuple[int, int, int] = (0, 1, 2),
        family: Callable[[int], Family] = OneChild,
    ) -> None:
        """``restart``: where it ends by a signal or with an exit code that is not 0. ``stdio``:
        fds that become its first three. ``family``: what its processes are, by the first one's
        pid."""
        self._framework = framework
        self._service = framework.nodes.service
        self._argv = tuple(argv)
        self._env = env
        self._watcher = watcher
        self._restart = restart
        self._stdio = stdio
        self._family = family
        self._backoff = Backoff()
        self._changed = threading.Condition()
        self._life: _Life | None = None
        self._supervised: _native.Supervised | None = None
        self._pid = 0
        self._starts = 0
        self._ending = False
        #: :meth:`end` has waited for long enough.
        self._impatient = False
        #: :meth:`kill` has killed it.
        self._killed = False
        self._code = 0
        self._thread = threading.Thread(target=self._run, name="vduse-program", daemon=True)
        self._first: Future[None] = Future()

    @property
    def pid(self) -> int:
        """Of its first process, or the one before where it is just started again. 0: never
        started."""
        return self._pid

    @property
    def running(self) -> bool:
        """It has been started, and not ended since."""
        return self._life is not None

    @property
    def exit_code(self) -> int:
        """Of its last end: 128 + N after signal N; 0 where the signal was that of :meth:`end`."""
        return self._code

    @property
    def supervised(self) -> _native.Supervised | None:
        """For its statistics; None: never started."""
        return self._supervised

    def start(self) -> None:
        """Waits until it runs. ProgramError: it cannot."""
        self._thread.start()
        self._first.result()

    def kill(self) -> None:
        """SIGKILL, and waits until all of it is dead and its nodes are closed; it is started again
        at once. Nothing where it ends already."""
        with self._changed:
            life = self._life
            if life is None or self._ending:
                return
            self._killed = True
            if not life.send(signal.SIGKILL):  # it has daemonized
                life.family.signal(signal.SIGKILL)
            self._changed.wait_for(lambda: self._life is not life)

    def end(self, patience: float = PATIENCE) -> bool:
        """SIGTERM, after ``patience`` seconds SIGKILL; waits until all of it has ended. False: it
        had to be killed."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            life = self._life
        if life is not None and not life.send(signal.SIGTERM):
            life.family.signal(signal.SIGTERM)
        self._thread.join(patience)
        if not self._thread.is_alive():
            return True
        self._impatient = True
        if life is not None:
            life.family.signal(signal.SIGKILL)
        self._thread.join()
        return False

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (delay := self._live()) is not None:
                with self._changed:
                    if self._changed.wait_for(lambda: self._ending, delay):
                        break
        except BaseException as error:
            if self._starts:
                raise
            self._first.set_exception(error)  # a fault of ours: nobody waits for ever
        finally:
            with self._changed:
                self._life = None
                self._changed.notify_all()
            if self._starts:
                self._watcher.ended()

    def _live(self) -> float | None:
        """One life; seconds until the next one, None: there is none."""
        try:
            life = self._spawn()
        except (OSError, VdpaError, ProgramError) as error:
            self._spawn_failed(error)
            return None
        if not self._first.done():
            self._first.set_result(None)
        self._watcher.started(life.pid, self._starts)
        status = self._wait(life)
        self._service.discard(life.supervisor)
        life.supervisor.closed.wait(_SETTLE)
        with self._changed:
            end = self._end_of(life, status)
            self._life, self._killed = None, False
            self._changed.notify_all()
        life.close()
        self._watcher.exited(end)
        return end.restart

    def _spawn(self) -> _Life:
        nodes = self._framework.nodes
        supervised = _native.Supervised.spawn(self._argv, self._env, stdio=self._stdio)
        supervisor = Supervisor(nodes, supervised, self._watcher.set_up)
        life = _Life(supervised, supervisor, self._family(supervised.pid))
        nodes.service.add(supervisor)
        with self._changed:
            self._supervised, self._pid = supervised, life.pid
            self._life = life
            self._starts += 1
            if self._ending:  # that came in between
                life.send(signal.SIGTERM)
        return life

    def _spawn_failed(self, error: Exception) -> None:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if not self._starts:
            self._first.set_exception(ProgramError(what))
            return
        log.error("%s: not started again: %s", self._argv[0], what)
        self._code = self._code or 1

    def _wait(self, life: _Life) -> int:
        """Until all of it has ended; the wait status that counts: the first process's, or where
        that one has daemonized the last one's."""
        counts = 0
        has_ended = daemonized = False
        while True:
            try:
                pid, status = life.family.wait()
            except ChildProcessError:
                return counts
            if pid == life.pid:
                counts, has_ended = status, True
                daemonized = status == 0 and not self._ending and not self._killed
            elif daemonized:
                counts = status
            # Those whose parent has just ended are found now.
            if has_ended and (rest := self._signal_for_rest(daemonized)) is not None:
                life.family.signal(rest)

    def _signal_for_rest(self, daemonized: bool) -> int | None:
        """What the processes get that the first one has left behind."""
        if not daemonized or self._killed or self._impatient:
            return signal.SIGKILL
        return signal.SIGTERM if self._ending else None

    def _end_of(self, life: _Life, status: int) -> Exit:
        by = signal_name(status)
        code = exit_code(status)
        if self._ending:
            restart = None
        elif self._killed:
            restart = 0.0
        elif self._restart and code != 0:
            restart = self._backoff.after(monotonic() - life.begin)
            if restart is None:
                log.error("%s: ended %d times in a row", self._argv[0], Backoff.TRIES)
        else:
            restart = None
        self._code = 0 if self._ending and by == "SIGTERM" else code
        return Exit(life.pid, code, by, restart)
