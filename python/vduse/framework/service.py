"""The framework's service thread: carries every control, call and message socket of one
framework. It never waits for a device or a driver."""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)


class Endpoint(Protocol):
    """A socket that the service thread serves. Every method runs on that thread."""

    @property
    def wants_write(self) -> bool:
        """Call :meth:`serve` when the socket is writable, too."""

    def fileno(self) -> int: ...
    def serve(self) -> bool:
        """Does what there is to do, without waiting. False: the connection is over."""

    def close(self) -> None: ...


class Service:
    """One thread and its selector. Methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._commands: deque[Callable[[], None]] = deque()
        self._endpoints: dict[int, Endpoint] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def add(self, endpoint: Endpoint) -> None:
        """Serves ``endpoint`` until its end or :meth:`discard`, and closes it then."""
        if threading.current_thread() is self._thread:
            self._register(endpoint)
        else:
            self.run(lambda: self._register(endpoint))

    def discard(self, endpoint: Endpoint) -> None:
        """Closes ``endpoint``, if it is served still."""
        self.run(lambda: self._unregister(endpoint))

    def poke(self, endpoint: Endpoint) -> None:
        """``endpoint`` has something to send: calls its ``serve``."""
        self.run(lambda: self._serve_one(endpoint))

    def serve_now(self, endpoint: Endpoint) -> None:
        """On the service thread: what has come for ``endpoint`` is looked at before this
        returns."""
        self._serve_one(endpoint)

    def run(self, command: Callable[[], None]) -> None:
        """Runs ``command`` on the thread, soon. Nothing after :meth:`close`."""
        with self._lock:
            if self._closing:
                return
            self._commands.append(command)
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Closes every endpoint and ends the thread."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _register(self, endpoint: Endpoint) -> None:
        try:
            self._selector.register(endpoint.fileno(), _events(endpoint), endpoint)
        except BaseException:
            endpoint.close()
            raise
        self._endpoints[id(endpoint)] = endpoint
        self._serve_one(endpoint)

    def _unregister(self, endpoint: Endpoint) -> None:
        if self._endpoints.pop(id(endpoint), None) is not None:
            self._selector.unregister(endpoint.fileno())
            try:
                endpoint.close()
            except Exception:
                log.exception("while a connection was closed")

    def _serve_one(self, endpoint: Endpoint) -> None:
        if id(endpoint) not in self._endpoints:
            return
        try:
            alive = endpoint.serve()
        except Exception:
            log.exception("a connection is closed: it made its handler fail")
            alive = False
        if not alive:
            self._unregister(endpoint)
        elif self._selector.get_key(endpoint.fileno()).events != _events(endpoint):
            self._selector.modify(endpoint.fileno(), _events(endpoint), endpoint)

    def _serve(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.eventfd_read(self._wake)
                    self._run_commands()
                else:
                    self._serve_one(key.data)
        for endpoint in list(self._endpoints.values()):
            self._unregister(endpoint)
        self._selector.close()
        with self._lock:
            self._commands.clear()
            os.close(self._wake)

    def _run_commands(self) -> None:
        while self._commands:
            command = self._commands.popleft()
            try:
                command()
            except Exception:
                log.exception("command of the service thread failed")


def _events(endpoint: Endpoint) -> int:
    write = selectors.EVENT_WRITE if endpoint.wants_write else 0
    return selectors.EVENT_READ | write
