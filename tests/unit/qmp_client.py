"""A raw QMP client: bytes out, answers in."""

from __future__ import annotations

import json
import socket
from typing import Any

#: Seconds; a watchdog.
TIMEOUT = 60.0


class QmpClient:
    """A connection. ``answers`` are whatever comes line by line, events among them."""

    def __init__(self, path: str, *, negotiate: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)
        self._file = self.socket.makefile("rb")
        if negotiate:
            assert "QMP" in self.answer()
            assert self.call("qmp_capabilities") == {}

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> dict[str, Any]:
        """The next message."""
        line = self._file.readline()
        if not line:
            raise EOFError
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def execute(self, command: str, /, **arguments: Any) -> dict[str, Any]:
        """A command's answer; events that come before it are lost. ``_`` is ``-``."""
        dashed = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": dashed}
        self.send(json.dumps(request).encode() + b"\n")
        while "event" in (message := self.answer()):
            pass
        return message

    def call(self, command: str, /, **arguments: Any) -> Any:
        """What a command returns."""
        message = self.execute(command, **arguments)
        assert "return" in message, message
        return message["return"]

    def refusal(self, command: str, /, **arguments: Any) -> str:
        """An error's ``desc``."""
        message = self.execute(command, **arguments)
        assert message["error"]["class"] == "GenericError"
        desc = message["error"]["desc"]
        assert isinstance(desc, str)
        return desc

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> QmpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
