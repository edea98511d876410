"""A tap: sees everything that crosses a channel. The recorder, the trace and the tests use it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Protocol

from vduse.channel.render import call_name, payload_text, result_text
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
        sent = payload_text(self.nr, self.payload)
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
        return f"{self.device} <- #{self.request.request_id} {self.request.message}"


@dataclass(frozen=True, slots=True)
class Responded:
    """The device's answer to a message; raw bytes where it was no vduse_dev_response."""

    device: str
    time: float
    response: abi.DevResponse | bytes

    def line(self) -> str:
        if isinstance(self.response, bytes):
            return f"{self.device} -> malformed {self.response.hex()}"
        word = "OK" if self.response.result == abi.RequestResult.OK else "FAILED"
        state = f" vq {self.response.vq_index} {self.response.vq_state.hex()}"
        shown = state if any(self.response.vq_state) else ""
        return f"{self.device} -> #{self.response.request_id} {word}{shown}"


@dataclass(frozen=True, slots=True)
class Closed:
    """The node was closed."""

    device: str
    time: float

    def line(self) -> str:
        return f"{self.device} close"


Record = Opened | Called | Messaged | Responded | Closed


class Recorder:
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

    def _add(self, record: Record) -> None:
        with self._lock:
            self._records.append(record)

    def on_open(self, device: str) -> None:
        self._add(Opened(device, monotonic()))

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
        self._add(Called(device, monotonic(), nr, payload, nfds, result, answer, answer_nfds))

    def on_message(self, device: str, data: bytes) -> None:
        self._add(Messaged(device, monotonic(), abi.DevRequest.unpack(data)))

    def on_response(self, device: str, data: bytes) -> None:
        response: abi.DevResponse | bytes = data
        if len(data) == abi.DevResponse.SIZE:
            response = abi.DevResponse.unpack(data)
        self._add(Responded(device, monotonic(), response))

    def on_close(self, device: str) -> None:
        self._add(Closed(device, monotonic()))


def normalized(records: Sequence[Record]) -> list[Record]:
    """The records with times zeroed, request ids replaced by small ones in order of appearance,
    kick fd numbers by 0, and addresses of virtqueues, where there are any, by 1, so that two runs
    can be compared."""
    ids: dict[tuple[str, int], int] = {}

    def renumbered(device: str, request_id: int) -> int:
        return ids.setdefault((device, request_id), 1 + sum(d == device for d, _ in ids))

    result: list[Record] = []
    for record in records:
        match record:
            case Messaged(device=device, request=request):
                number = renumbered(device, request.request_id)
                request = replace(request, request_id=number)
                result.append(replace(record, time=0.0, request=request))
            case Responded(device=device, response=abi.DevResponse() as response):
                number = renumbered(device, response.request_id)
                response = replace(response, request_id=number)
                result.append(replace(record, time=0.0, response=response))
            case Called(nr=abi.Ioctl.VQ_SETUP_KICKFD, payload=payload) if (
                len(payload) == abi.VqEventfd.SIZE
            ):
                eventfd = abi.VqEventfd.unpack(payload)
                eventfd = replace(eventfd, fd=min(eventfd.fd, 0))
                result.append(replace(record, time=0.0, payload=eventfd.pack()))
            case Called(nr=abi.Ioctl.VQ_GET_INFO, answer=answer) if len(answer) == abi.VqInfo.SIZE:
                info = abi.VqInfo.unpack(answer)
                info = replace(
                    info,
                    desc_addr=min(info.desc_addr, 1),
                    driver_addr=min(info.driver_addr, 1),
                    device_addr=min(info.device_addr, 1),
                )
                result.append(replace(record, time=0.0, answer=info.pack()))
            case _:
                result.append(replace(record, time=0.0))
    return result
