"""Counts what crosses the channels, by device and by name."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict

from vduse.channel.render import call_name
from vduse.control.abi import DevRequest, RequestType

_TYPES = {kind.value: kind.name for kind in RequestType}


class Counts:
    """A tap (:class:`vduse.channel.tap.Tap`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._messages: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def calls(self, device: str) -> dict[str, int]:
        """The device's calls, by ioctl name."""
        with self._lock:
            return dict(self._calls[device])

    def messages(self, device: str) -> dict[str, int]:
        """Messages to the device, by type."""
        with self._lock:
            return dict(self._messages[device])

    def on_open(self, device: str) -> None:
        """Nothing to count."""

    def on_call(
        self,
        device: str,
        nr: int,
        payload: bytes,
        nfds: int,
        result: int,
        answer: bytes,
        answer_nfds: int,
    ) -> None:
        with self._lock:
            self._calls[device][call_name(nr)] += 1

    def on_message(self, device: str, data: bytes) -> None:
        kind = DevRequest.unpack(data).type
        name = _TYPES.get(kind, f"{kind:#x}")
        with self._lock:
            self._messages[device][name] += 1

    def on_response(self, device: str, data: bytes) -> None:
        """Nothing to count: each message has one."""

    def on_close(self, device: str) -> None:
        """Nothing to count."""
