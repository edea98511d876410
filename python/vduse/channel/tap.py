"""A tap: sees everything that crosses a channel. The recorder, the trace and the tests use it.

Each crossing can be had as a record with a readable line.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from vduse.channel.render import (
    call_name,
    given_text,
    message_text,
    payload_text,
    result_text,
)
from vduse.control import abi


class Tap(Protocol):
    """Told of every crossing, on the thread that serves the channel: be quick, do not raise.

    ``device`` is the device's name, empty on a control socket. Bytes are the structs of
    linux/vduse.h.
    """

    def on_open(self, device: str) -> None:
        """A device side has opened the node."""

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
        """An ioctl and its answer; ``result`` as the ioctl returned it, or -errno."""

    def on_message(self, device: str, data: bytes) -> None:
        """A vduse_dev_request on its way to the device."""

    def on_response(self, device: str, data: bytes) -> None:
        """A vduse_dev_response that came from the device."""

    def on_close(self, device: str) -> None:
        """The node is closed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The node was opened."""

    device: str
    #: Monotonic seconds.
    time: float

    def line(self) -> str:
        """One readable line."""
        return f"{self.device} open"


@dataclass(frozen=True, slots=True)
class Called:
    """An ioctl and its answer."""

    device: str
    time: float
    nr: int
    payload: bytes
    nfds: int
    result: int
    answer: bytes
    answer_nfds: int

    def line(self) -> str:
        fds = f" +{self.nfds}fd" if self.nfds else ""
        answer_fds = f" +{self.answer_nfds}fd" if self.answer_nfds else ""
        sent = given_text(self.nr, self.payload)
        back = payload_text(self.nr, self.answer) if self.answer else ""
        call = f"{self.device or 'control'} {call_name(self.nr)}({sent}){fds}"
        return f"{call} = {result_text(self.result)} {back}".rstrip() + answer_fds


@dataclass(frozen=True, slots=True)
class Messaged:
    """A message to the device."""

    device: str
    time: float
    request: abi.DevRequest

    def line(self) -> str:
        return f"{self.device} <- {self.what()}"

    def what(self) -> str:
        """Its id and what it says."""
        return f"#{self.request.request_id} {message_text(self.request.message)}"


@dataclass(frozen=True, slots=True)
class Responded:
    """The device's answer to a message; raw bytes where it was no vduse_dev_response."""

    device: str
    time: float
    response: abi.DevResponse | bytes

    def line(self) -> str:
        return f"{self.device} -> {self.what()}"

    def what(self) -> str:
        """Whose answer it is, and what it says."""
        if isinstance(self.response, bytes):
            return f"malformed {self.response.hex()}"
        word = "OK" if self.response.result == abi.RequestResult.OK else "FAILED"
        state = f" vq {self.response.vq_index} {self.response.vq_state.hex()}"
        shown = state if any(self.response.vq_state) else ""
        return f"#{self.response.request_id} {word}{shown}"


@dataclass(frozen=True, slots=True)
class Closed:
    """The node was closed."""

    device: str
    time: float

    def line(self) -> str:
        return f"{self.device} close"


Record = Opened | Called | Messaged | Responded | Closed


class TeeTap:
    """Several taps as one: each is told, in their order."""

    def __init__(self, *taps: Tap) -> None:
        self._taps = taps

    def on_open(self, device: str) -> None:
        for tap in self._taps:
            tap.on_open(device)

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
        for tap in self._taps:
            tap.on_call(device, nr, payload, nfds, result, answer, answer_nfds)

    def on_message(self, device: str, data: bytes) -> None:
        for tap in self._taps:
            tap.on_message(device, data)

    def on_response(self, device: str, data: bytes) -> None:
        for tap in self._taps:
            tap.on_response(device, data)

    def on_close(self, device: str) -> None:
        for tap in self._taps:
            tap.on_close(device)


def tee(taps: Iterable[Tap | None]) -> Tap | None:
    """Those of them that there are as one; None: there is none."""
    there = [tap for tap in taps if tap is not None]
    return TeeTap(*there) if len(there) > 1 else next(iter(there), None)


class RecordTap(ABC):
    """A tap that makes a record of each crossing."""

    @abstractmethod
    def add(self, record: Record) -> None:
        """Takes the next record; on the thread that serves the channel."""

    def on_open(self, device: str) -> None:
        self.add(Opened(device, monotonic()))

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
        self.add(Called(device, monotonic(), nr, payload, nfds, result, answer, answer_nfds))

    def on_message(self, device: str, data: bytes) -> None:
        self.add(Messaged(device, monotonic(), abi.DevRequest.unpack(data)))

    def on_response(self, device: str, data: bytes) -> None:
        self.add(Responded(device, monotonic(), response_of(data)))

    def on_close(self, device: str) -> None:
        self.add(Closed(device, monotonic()))


def response_of(data: bytes) -> abi.DevResponse | bytes:
    """What a device wrote; the bytes themselves where they are no vduse_dev_response."""
    return abi.DevResponse.unpack(data) if len(data) == abi.DevResponse.SIZE else data


class Recorder(RecordTap):
    """A tap that keeps what it saw, from any number of channels, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[Record] = []

    @property
    def records(self) -> Sequence[Record]:
        """A copy of what was seen so far."""
        with self._lock:
            return tuple(self._records)

    def lines(self, *, times: bool = False) -> list[str]:
        """A readable line a record; with ``times``, seconds since the first one in front."""
        records = self.records
        if not times:
            return [record.line() for record in records]
        start = records[0].time if records else 0.0
        return [f"{record.time - start:10.6f} {record.line()}" for record in records]

    def add(self, record: Record) -> None:
        with self._lock:
            self._records.append(record)
