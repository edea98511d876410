"""The server: an asyncio loop on a thread of its own, so that a program without one can have it.

Commands run on another thread, one at a time; who asked waits, connections go on. A client that
does not read is not read from, and loses its connection where events pile up for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from socket import socket
from typing import Any, Protocol

import msgspec

from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.qmp.session import Answer, Call, Session, failure, greeting
from vduse.daemon.qmp.stream import JsonStream
from vduse.daemon.qmp.table import CommandTable, QmpCommand

log = logging.getLogger(__name__)

#: Bytes read at a time.
_CHUNK = 1 << 16
#: Bytes of events that wait for a client; more, and it is given up.
MAX_PENDING = 1 << 20
#: Seconds that a client has to take the last answers.
LINGER = 1.0
#: Seconds until the next try where no connection can be accepted: no fds are left, for example.
_ACCEPT_AGAIN = 1.0


class Listener(Protocol):
    """A listening socket."""

    def fileno(self) -> int:
        """Readable when a client has arrived."""

    def accept(self) -> socket:
        """A client's connection. BlockingIOError: there is none."""

    def close(self) -> None:
        """Takes no connection any more."""


class QmpServer:
    """Serves a table at any number of sockets, from its making to :meth:`close`. Public methods
    may be called from any thread but a command's."""

    def __init__(self, commands: Iterable[QmpCommand]) -> None:
        """ValueError: two commands of one name."""
        self._table = CommandTable(commands)
        self._calls: queue.SimpleQueue[tuple[Call, Future[tuple[Answer, bool]]] | None]
        self._calls = queue.SimpleQueue()
        self._clients: set[_Client] = set()
        self._listeners: list[Listener] = []
        self._loop = asyncio.new_event_loop()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in (
                (self._loop.run_forever, "vduse-qmp"),
                (self._run_calls, "vduse-qmp-command"),
            )
        ]
        for thread in self._threads:
            thread.start()

    def listen(self, listener: Listener, *, pretty: bool = False) -> None:
        """Serves who connects to ``listener``, which it takes over: one client at a time, as QEMU
        does; others wait in the socket's backlog. ``pretty``: answers are indented."""
        self._listeners.append(listener)
        self._start(self._accept_for_ever(listener, pretty))

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Sends an event to all clients that have negotiated."""
        now = time.time_ns()
        stamp = {"seconds": now // 10**9, "microseconds": now // 1000 % 10**6}
        message = {"timestamp": stamp, "event": event, "data": data}
        self._loop.call_soon_threadsafe(self._emit, message)

    def close(self) -> None:
        """Sends what is to be sent, within :data:`LINGER` seconds, and ends all connections. A
        command that runs is not waited for longer than that."""
        if self._loop.is_closed():
            return
        self._start(self._shutdown()).result()
        self._calls.put(None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        loop_thread, call_thread = self._threads
        loop_thread.join()
        call_thread.join(LINGER)
        self._loop.close()
        for listener in self._listeners:
            listener.close()

    # --- the command thread -----------------------------------------------------------------

    def _run_calls(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            if future.set_running_or_notify_cancel():
                future.set_result(call.run())

    # --- the loop's thread ------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _accept_for_ever(self, listener: Listener, pretty: bool) -> None:
        while True:
            try:
                connection = await _accept(listener)
            except OSError as error:
                log.warning("no connection accepted: %s", error)
                await asyncio.sleep(_ACCEPT_AGAIN)
                continue
            try:
                reader, writer = await asyncio.open_connection(sock=connection)
            except BaseException:
                connection.close()
                raise
            client = _Client(writer, Session(self._table), pretty)
            self._clients.add(client)
            try:
                await self._serve(reader, client)
            except ConnectionError as error:
                log.debug("a connection has ended: %s", error)
            except Exception:
                log.exception("a connection has ended")
            finally:
                self._clients.discard(client)
                await client.close()

    async def _serve(self, reader: asyncio.StreamReader, client: _Client) -> None:
        stream = JsonStream()
        client.send(greeting())
        while data := await reader.read(_CHUNK):
            for value in stream.feed(data):
                if isinstance(value, QmpError):
                    client.send(failure(value))
                else:
                    await self._request(client, value)
                # It is read from again once it has read.
                await client.writer.drain()

    async def _request(self, client: _Client, value: bytes) -> None:
        request = client.session.request(value)
        if not isinstance(request, Call):
            client.send(request)
            return
        future: Future[tuple[Answer, bool]] = Future()
        self._calls.put((request, future))
        answer, success = await asyncio.wrap_future(future)
        client.send(answer)
        if success and request.command.answered is not None:
            request.command.answered()

    def _emit(self, message: dict[str, Any]) -> None:
        for client in self._clients:
            if client.session.ready:
                client.send_event(message)

    async def _shutdown(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        # Each closes its connection.
        await asyncio.gather(*others, return_exceptions=True)


class _Client:
    """A connection."""

    def __init__(self, writer: asyncio.StreamWriter, session: Session, pretty: bool) -> None:
        self.writer = writer
        self.session = session
        self._pretty = pretty

    def send(self, message: dict[str, Any]) -> None:
        try:
            text = msgspec.json.encode(message)
        except UnicodeEncodeError:
            # A file's name that is no UTF-8: escapes of what stands for its bytes.
            text = json.dumps(message, separators=(",", ":")).encode()
        if self._pretty:
            text = msgspec.json.format(text, indent=4)
        self.writer.write(text.replace(b"\n", b"\r\n") + b"\r\n")

    def send_event(self, message: dict[str, Any]) -> None:
        if self.writer.transport.get_write_buffer_size() > MAX_PENDING:
            log.warning("a client does not read its events: disconnected")
            self.writer.transport.abort()
        else:
            self.send(message)

    async def close(self) -> None:
        """What was sent arrives if the client takes it soon."""
        self.writer.close()
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(LINGER):
                    await self.writer.wait_closed()
        finally:
            self.writer.transport.abort()


async def _accept(listener: Listener) -> socket:
    arrived = asyncio.Event()
    loop, fd = asyncio.get_running_loop(), listener.fileno()
    while True:
        with contextlib.suppress(BlockingIOError):
            return listener.accept()
        arrived.clear()
        loop.add_reader(fd, arrived.set)
        try:
            await arrived.wait()
        finally:
            loop.remove_reader(fd)
