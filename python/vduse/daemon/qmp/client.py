"""A client of a QMP server, for commands of ours that ask another vduse process. It waits no longer
than it says, and reads no more than it says, whatever is at the other end."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import ExitStack
from time import monotonic
from types import TracebackType
from typing import Any, Self

from vduse.daemon.errors import UserError
from vduse.daemon.qmp.errors import ErrorClass

#: Bytes of an answer.
_LONGEST_LINE = 1 << 26
_CHUNK = 1 << 16

_ADVICE = {
    errno.ENOENT: "no such socket",
    errno.ECONNREFUSED: "nobody serves it any more",
    errno.EACCES: "permission denied: it is for the user of the vduse process that serves it",
}


class UnknownCommand(UserError):
    """The server has no such command."""


class QmpClient:
    """A connection that has negotiated."""

    def __init__(self, path: str, *, timeout: float, served_by: str) -> None:
        """``timeout``: seconds until the server's greeting: it has one client at a time;
        ``served_by``: a command that serves one there, for who finds nobody. UserError."""
        self._path = path
        self._buffer = bytearray()
        with ExitStack() as undo:
            self._socket = undo.enter_context(socket.socket(socket.AF_UNIX))
            deadline = monotonic() + timeout
            self._socket.settimeout(timeout)
            try:
                self._socket.connect(path)
                if "QMP" not in self._message(deadline):
                    raise UserError(f"{path}: not QMP")
                self._execute("qmp_capabilities", {}, deadline)
            except TimeoutError:
                raise UserError(
                    f"{path}: does not answer: another QMP client has it; a monitor of its own "
                    "is for this"
                ) from None
            except (OSError, ValueError) as error:
                if os.path.isfile(path):
                    raise UserError(f"{path}: is a file and no socket: name a monitor's") from None
                number = error.errno if isinstance(error, OSError) else None
                text = error.strerror if isinstance(error, OSError) else None
                why = _ADVICE.get(number or 0, text or str(error))
                raise UserError(f"{path}: {why}; {served_by} serves one") from None
            undo.pop_all()

    def execute(self, command: str, *, timeout: float, **arguments: Any) -> Any:
        """What the command returns; arguments with underscores for dashes. UserError: it was
        refused, or there was no answer within ``timeout`` seconds."""
        dashed = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            return self._execute(command, dashed, monotonic() + timeout)
        except TimeoutError:
            raise UserError(
                f"{self._path}: {command} has not ended within {timeout:g} s, and goes on"
            ) from None
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror}") from None

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _execute(self, command: str, arguments: dict[str, Any], deadline: float) -> Any:
        request = {"execute": command, "arguments": arguments}
        self._wait(deadline)
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while "event" in (message := self._message(deadline)):
            pass
        if "return" in message:
            return message["return"]
        error = message.get("error")
        if not isinstance(error, dict):
            raise UserError(f"{self._path}: not QMP")
        if error.get("class") == ErrorClass.COMMAND_NOT_FOUND:
            raise UnknownCommand(f"{self._path}: {error.get('desc', command)}")
        raise UserError(str(error.get("desc", "no answer")))

    def _message(self, deadline: float) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LONGEST_LINE:
                raise UserError(f"{self._path}: not QMP")
            self._wait(deadline)
            if not (data := self._socket.recv(_CHUNK)):
                raise UserError(
                    f"{self._path}: {'not QMP' if self._buffer else 'the connection has ended'}"
                )
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise UserError(f"{self._path}: not QMP")
        return message

    def _wait(self, deadline: float) -> None:
        """TimeoutError: it is over."""
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
