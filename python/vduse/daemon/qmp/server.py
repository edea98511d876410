"""The server: an asyncio loop on a thread of its own, so that a program without one can have it.

The commands of a connection run one after the other on a thread of its own: who asked waits, other
connections go on. A client that does not read is not read from, and loses its connection where
events pile up for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import select
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from socket import socket
from typing import Any, Protocol

import msgspec

from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.qmp.runner import Runner
from vduse.daemon.qmp.session import Call, Session, failure, greeting
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
        self._clients: set[_Client] = set()
        self._listeners: list[Listener] = []
        self._loop = asyncio.new_event_loop()
        self._runners: set[Runner] = set()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vduse-qmp", daemon=True
        )
        self._thread.start()

    def listen(self, listener: Listener, *, pretty: bool = False) -> None:
        """Serves who connects to ``listener``, which it takes over: one client at a time, as QEMU
        does; others wait in the socket's backlog. ``pretty``: answers are indented."""
        self._listeners.append(listener)
        self._start(self._accept_for_ever(listener, pretty))

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Sends an event to all clients that have negotiated. After :meth:`close`: to nobody."""
        now = time.time_ns()
        stamp = {"seconds": now // 10**9, "microseconds": now // 1000 % 10**6}
        message = {"timestamp": stamp, "event": event, "data": data}
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._emit, message)

    def post(self, callback: Callable[[], None]) -> None:
        """Runs ``callback`` on the loop's thread, soon. Not after :meth:`close`."""
        self._loop.call_soon_threadsafe(callback)

    def close(self) -> None:
        """Sends what is to be sent, within :data:`LINGER` seconds, and ends all connections. A
        command that runs is not waited for longer than that."""
        if self._loop.is_closed():
            return
        runners = self._runners.copy()
        self._start(self._shutdown()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        deadline = time.monotonic() + LINGER
        for runner in runners:
            runner.join(max(0.0, deadline - time.monotonic()))
        self._loop.close()
        for listener in self._listeners:
            listener.close()

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
            try:
                client = _Client(writer, Session(self._table), pretty)
            except OSError as error:
                log.warning("no connection served: %s", error)
                writer.transport.abort()
                continue
            served = asyncio.create_task(self._attend(reader, client))
            await asyncio.wait({served, client.gone}, return_when=asyncio.FIRST_COMPLETED)
            # Who has gone is waited for as long as its commands are quick: then the next client
            # finds them done.
            await asyncio.wait({served}, timeout=LINGER)

    async def _attend(self, reader: asyncio.StreamReader, client: _Client) -> None:
        self._clients.add(client)
        try:
            with self._runner() as runner:
                await self._serve(reader, client, runner)
        except ConnectionError as error:
            log.debug("a connection has ended: %s", error)
        except Exception:
            log.exception("a connection has ended")
        finally:
            self._clients.discard(client)
            await client.close()

    @contextlib.contextmanager
    def _runner(self) -> Iterator[Runner]:
        runner = Runner()
        self._runners.add(runner)
        try:
            yield runner
        finally:
            self._runners.discard(runner)
            runner.end()

    async def _serve(self, reader: asyncio.StreamReader, client: _Client, runner: Runner) -> None:
        stream = JsonStream()
        client.send(greeting())
        while data := await reader.read(_CHUNK):
            for value in stream.feed(data):
                if isinstance(value, QmpError):
                    client.send(failure(value))
                else:
                    await self._request(client, runner, value)
                # It is read from again once it has read.
                await client.writer.drain()

    async def _request(self, client: _Client, runner: Runner, value: bytes) -> None:
        request = client.session.request(value)
        if not isinstance(request, Call):
            client.send(request)
            return
        answer, success = await asyncio.wrap_future(runner.submit(request))
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
        #: Done once it has closed its socket, which reading would tell only after its commands.
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Events that nobody asks for are EPOLLHUP and EPOLLERR.
        self._hangup = select.epoll()
        self._hangup.register(writer.get_extra_info("socket").fileno(), 0)
        self.gone.get_loop().add_reader(self._hangup.fileno(), self._has_gone)

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

    def _has_gone(self) -> None:
        self.gone.get_loop().remove_reader(self._hangup.fileno())
        if not self.gone.done():
            self.gone.set_result(None)

    async def close(self) -> None:
        """What was sent arrives if the client takes it soon."""
        self._has_gone()
        self._hangup.close()
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
