"""Where scrapers fetch metrics: ``GET /metrics`` over HTTP/1.1, at a port or a unix socket.

An asyncio loop on a thread of its own. Whoever comes has :data:`PATIENCE` seconds for all it does
and gets one answer; there are never more than :data:`MOST_CLIENTS`, and a request's head is read
only so far. Nothing else of the daemon waits for any of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from http import HTTPStatus

from vduse.exports.listen import Listener

log = logging.getLogger(__name__)

#: Connections at a time; more wait in the socket's backlog.
MOST_CLIENTS = 16
#: Seconds from a connection's begin to its end.
PATIENCE = 10.0
#: Bytes of a request's head.
MOST_HEAD = 16 << 10
#: Seconds until the next try where no connection can be accepted.
_ACCEPT_AGAIN = 1.0

#: The header Accept; text, and its type.
Render = Callable[[str], tuple[bytes, str]]


class MetricsEndpoint:
    """From its making to :meth:`close`."""

    def __init__(self, listener: Listener, render: Render) -> None:
        """Takes over the listener. ``render`` is called on the endpoint's thread."""
        self._listener = listener
        self._render = render
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vduse-metrics", daemon=True
        )
        self._thread.start()
        self._work = asyncio.run_coroutine_threadsafe(self._accept_for_ever(), self._loop)

    @property
    def place(self) -> str:
        """Where it listens, for people."""
        return self._listener.path

    def close(self) -> None:
        """Ends all connections."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept_for_ever(self) -> None:
        room = asyncio.Semaphore(MOST_CLIENTS)
        arrived, tasks = asyncio.Event(), set()
        self._loop.add_reader(self._listener.fileno(), arrived.set)
        try:
            while True:
                await room.acquire()
                arrived.clear()
                try:
                    connection = self._listener.accept()
                except BlockingIOError:
                    room.release()
                    await arrived.wait()
                    continue
                except OSError as error:
                    room.release()
                    log.warning("metrics: no connection accepted: %s", error)
                    await asyncio.sleep(_ACCEPT_AGAIN)
                    continue
                try:
                    # Bytes kept at a time; a head that is longer is refused.
                    streams = await asyncio.open_connection(sock=connection, limit=MOST_HEAD)
                except BaseException:
                    connection.close()
                    raise
                task = self._loop.create_task(self._serve(*streams))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(lambda _: room.release())
        finally:
            self._loop.remove_reader(self._listener.fileno())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(PATIENCE):
                    writer.write(await self._answer(reader))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except Exception:
            log.exception("metrics: a connection has ended")
        finally:
            # What has not gone out by now never will.
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        first, *fields = head.decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        target, _, version = rest.rpartition(" ")
        if not version.startswith("HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        if target.partition("?")[0] != "/metrics":
            return _response(HTTPStatus.NOT_FOUND, b"the metrics are at /metrics\n")
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, more="Allow: GET, HEAD\r\n")
        text, content_type = self._render(_header(fields, "accept"))
        return _response(HTTPStatus.OK, text, content_type, head_only=method == "HEAD")


def _header(fields: list[str], name: str) -> str:
    """Empty: there is none."""
    for field in fields:
        key, _, value = field.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""


def _response(
    status: HTTPStatus,
    body: bytes = b"",
    content_type: str = "text/plain; charset=utf-8",
    *,
    more: str = "",
    head_only: bool = False,
) -> bytes:
    """``more``: fields, a line each."""
    body = body or f"{status.phrase}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{more}"
        "Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if head_only else body)
