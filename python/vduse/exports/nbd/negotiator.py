"""The one thread of a process that accepts NBD's connections and makes their handshakes.

It waits in epoll and nowhere else. A client has :data:`HANDSHAKE_TIMEOUT` seconds from its
connection to transmission, however slowly it sends or reads; a listener negotiates with
:data:`MAX_NEGOTIATING` clients at once, and one more ends the one that took longest. A listener
has :data:`MAX_CONNECTIONS` clients, those in transmission too, and the process keeps
:data:`SPARE_FDS` for its other devices: a client beyond that is the one that is ended.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import resource
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from vduse import _native
from vduse.exports.listen import Listener
from vduse.exports.nbd.export import Export
from vduse.exports.nbd.handshake import Agreed, Ended, Handshake

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds from the connection to transmission.
HANDSHAKE_TIMEOUT = 10.0
#: Clients of one listener in their handshakes.
MAX_NEGOTIATING = 64
#: Clients of one listener, in handshake and transmission together: each may hold 64 MiB of
#: requests.
MAX_CONNECTIONS = 128
#: Fds below RLIMIT_NOFILE that clients do not get.
SPARE_FDS = 32
#: Bytes of a TLS session taken at once.
_TLS_READ = 16 << 10
#: Seconds without accepting, where the process has no fd left for a connection.
_PAUSE = 1.0


@dataclass(frozen=True, eq=False, slots=True)
class Listening:
    """Where clients arrive, and what becomes of them. The calls come on the thread."""

    #: For the log.
    name: str
    listener: Listener
    #: What there is, now.
    exports: Callable[[], Sequence[Export]]
    #: A connection begins its transmission phase, with the TLS session that the handshake was made
    #: in; takes the fd, also where it raises.
    attach: Callable[[int, Agreed, _native.NbdTls | None], None]
    #: How many are in their transmission phase.
    connections: Callable[[], int]
    #: Most clients.
    most: int = MAX_CONNECTIONS
    #: A TLS session, which clients have to begin; None: they cannot. OSError.
    session: Callable[[], _native.NbdTls] | None = None


class Negotiator:
    """An epoll loop. ``_on_`` methods run on its thread, all others on any."""

    _shared: Negotiator | None = None
    _shared_lock = threading.Lock()

    def __init__(self, timeout: float = HANDSHAKE_TIMEOUT) -> None:
        self._timeout = timeout
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wakeup_lock = threading.Lock()
        self._selector.register(self._wakeup, selectors.EVENT_READ, self._on_wakeup)
        self._posted: deque[Callable[[], None]] = deque()
        #: In the order of their deadlines.
        self._clients: dict[_Client, None] = {}
        #: When listeners that may not accept go on.
        self._paused: dict[Listening, float] = {}
        self._stopping = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="vduse-nbd", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> Negotiator:
        """This process's one; a forked child gets its own."""
        with cls._shared_lock:
            shared = cls._shared
            if shared is None or shared._pid != os.getpid():
                shared = cls._shared = Negotiator()
                # The interpreter stops its threads without a word; who calls one later waits.
                atexit.register(shared.close)
            return shared

    def add(self, at: Listening) -> None:
        """Accepts its connections until :meth:`discard`."""
        self._call(lambda: self._accept_at(at))

    def discard(self, at: Listening) -> None:
        """No connection of it is accepted or attached after this."""

        def run() -> None:
            self._paused.pop(at, None)
            self._unwatch(at.listener.fileno())
            for client in [client for client in self._clients if client.at is at]:
                self._drop(client, "")

        self._call(run)

    def settle(self) -> None:
        """Returns once what the thread is doing now is done."""
        self._call(lambda: None)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls ``callback`` whenever ``fd`` is readable, until :meth:`unwatch`."""
        self._call(lambda: self._watch(fd, callback))

    def unwatch(self, fd: int) -> None:
        """``callback`` neither runs nor is called any more."""
        self._call(lambda: self._unwatch(fd))

    def close(self) -> None:
        """Ends the thread. A forked child has none."""
        if self._pid != os.getpid():
            return
        with self._wakeup_lock:
            if self._wakeup < 0:
                return
            self._stopping = True
            os.eventfd_write(self._wakeup, 1)
        self._thread.join()
        for client in list(self._clients):
            self._drop(client, "")
        with self._wakeup_lock:
            os.close(self._wakeup)
            self._wakeup = -1
        self._selector.close()
        self._on_posted()

    def _call(self, function: Callable[[], T]) -> T:
        """Runs ``function`` on the thread, or on the caller's after :meth:`close`."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._wakeup_lock:
            alive = self._wakeup >= 0
            if alive:
                self._posted.append(run)
                os.eventfd_write(self._wakeup, 1)
        if not alive:
            run()
        return future.result()

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._on_time()
            for key, _ in self._selector.select(self._patience()):
                # An earlier callback of this round may have ended this watch.
                if self._selector.get_map().get(key.fd) is key:
                    self._guarded(key.data)

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            log.exception("a callback of the NBD thread failed")

    def _watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def _accept_at(self, at: Listening) -> None:
        self._watch(at.listener.fileno(), lambda: self._on_accept(at))

    def _unwatch(self, fd: int) -> None:
        if self._wakeup >= 0 and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _on_wakeup(self) -> None:
        os.eventfd_read(self._wakeup)
        self._on_posted()

    def _on_posted(self) -> None:
        while self._posted:
            self._posted.popleft()()

    def _patience(self) -> float | None:
        """Seconds until there is something to do without an event."""
        times = list(self._paused.values())
        if self._clients:
            times.append(next(iter(self._clients)).deadline)
        return max(0.0, min(times) - monotonic()) if times else None

    def _on_time(self) -> None:
        now = monotonic()
        while self._clients and (client := next(iter(self._clients))).deadline <= now:
            self._drop(client, f"no end of its handshake within {self._timeout:g} s")
        for at in [at for at, when in self._paused.items() if when <= now]:
            del self._paused[at]
            self._accept_at(at)

    def _on_accept(self, at: Listening) -> None:
        try:
            connection = at.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("%s: cannot accept, waiting %g s: %s", at.name, _PAUSE, error.strerror)
            self._unwatch(at.listener.fileno())
            self._paused[at] = monotonic() + _PAUSE
            return
        others = [other for other in self._clients if other.at is at]
        if reason := self._too_many(at, connection, len(others)):
            log.warning("%s: a client was refused: %s", at.name, reason)
            connection.close()
            return
        if len(others) >= MAX_NEGOTIATING:
            self._drop(others[0], f"more than {MAX_NEGOTIATING} clients in their handshakes")
        client = _Client(at, connection, monotonic() + self._timeout)
        try:
            self._selector.register(
                connection, selectors.EVENT_WRITE, lambda: self._on_client(client)
            )
        except OSError:
            connection.close()
            raise
        self._clients[client] = None

    def _too_many(self, at: Listening, connection: socket.socket, negotiating: int) -> str | None:
        """Why there is no room for one more; None: there is."""
        room = min(at.most, MAX_CONNECTIONS)
        if negotiating + at.connections() >= room:
            return f"more than {room} clients"
        # Fds are given from the lowest on, and transmission takes one more for each client.
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if (
            most != resource.RLIM_INFINITY
            and connection.fileno() + len(self._clients) >= most - SPARE_FDS
        ):
            return f"the process is short of fds: raise the limit of {most} (ulimit -n)"
        return None

    def _on_client(self, client: _Client) -> None:
        try:
            events = client.serve()
        except OSError as error:
            self._drop(client, f"{error.strerror} during the handshake")
            return
        except Exception as error:
            self._drop(client, f"{type(error).__name__} here")
            raise
        if events:
            key = self._selector.get_key(client.socket)
            if key.events != events:
                self._selector.modify(client.socket, events, key.data)
        elif isinstance(outcome := client.shake.outcome, Agreed):
            self._forget(client)
            client.at.attach(client.socket.detach(), outcome, client.session)
        elif isinstance(outcome, Ended):
            self._drop(client, outcome.reason)

    def _drop(self, client: _Client, reason: str) -> None:
        if reason:
            log.warning("%s: a client was refused: %s", client.at.name, reason)
        self._forget(client)
        client.socket.close()

    def _forget(self, client: _Client) -> None:
        del self._clients[client]
        self._selector.unregister(client.socket)


class _Client:
    """A connection in its handshake."""

    def __init__(self, at: Listening, connection: socket.socket, deadline: float) -> None:
        self.at = at
        self.socket = connection
        self.deadline = deadline
        self.shake = Handshake(at.exports, requires_tls=at.session is not None)
        #: Once the client has begun one.
        self.session: _native.NbdTls | None = None
        self._unsent = b""
        #: What came out of the session and was not looked at.
        self._plain = b""

    def serve(self) -> int:
        """Reads or writes once; the events to wait for, 0: the handshake is over. A client that
        does not read its replies is not read from."""
        try:
            self._serve()
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._unsent = b""
            self.shake.receive(b"")
            return 0
        self._unsent = self._unsent or self._output()
        if self._unsent:
            return selectors.EVENT_WRITE
        if self.shake.outcome is not None:
            return 0
        # What is there already has no event: room in the socket has one at once.
        return selectors.EVENT_WRITE if self._plain else selectors.EVENT_READ

    def _serve(self) -> None:
        self._unsent = self._unsent or self._output()
        if self._unsent:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        elif self.shake.outcome is None:
            if self.shake.starts_tls and self.session is None and self.at.session is not None:
                self.session = self.at.session()
            if self.session is None:
                self.shake.receive(self.socket.recv(self.shake.wanted))
            else:
                self._receive_by(self.session)

    def _output(self) -> bytes:
        """What is to be sent, as it goes over the wire."""
        output = self.shake.take_output()
        if self.session is None:
            return output
        if output:
            self.session.send(output)
        return self.session.take_output()

    def _receive_by(self, session: _native.NbdTls) -> None:
        if not self._plain:
            data = self.socket.recv(_TLS_READ)
            if not data:
                self.shake.receive(b"")
                return
            try:
                self._plain = session.receive(data)
            except OSError:
                # An alert says so to the client, if it is there still.
                with suppress(OSError):
                    self.socket.send(session.take_output())
                raise
            if self.shake.starts_tls and not session.handshaking:
                self.shake.go_on()
        # A step at a time: replies leave before the next one is looked at.
        step = self._plain[: self.shake.wanted]
        if step:
            self._plain = self._plain[len(step) :]
            self.shake.receive(step)
            if self._plain and isinstance(self.shake.outcome, Agreed):
                raise OSError(errno.EPROTO, "requests before the answer")
