"""Control path and data path of a recording, apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vduse.channel.recording import Counted, Lost, Reader, RecordingError
from vduse.channel.render import call_name, result_text
from vduse.channel.tap import Called, Messaged, Record
from vduse.control.abi import ExtCall, Ioctl, unpack_name
from vduse.control.abi.structs import DevConfig

#: What device programs call while they serve requests, as often as the load has it.
DATA_PATH = frozenset(
    {Ioctl.IOTLB_GET_FD, Ioctl.IOTLB_GET_FD2, Ioctl.IOTLB_GET_INFO, Ioctl.VQ_INJECT_IRQ}
)
#: Devices, and kinds of calls, that a recording may have: what is kept of one is bounded.
MOST_DEVICES = 4096
_MOST_KINDS = 1 << 16


@dataclass
class Calls:
    """Calls of one kind."""

    count: int = 0
    #: Seconds; None: they were counted, and not seen one by one.
    first: float | None = None
    last: float | None = None


@dataclass(frozen=True, order=True)
class Kind:
    """A device's calls with one result are of one kind."""

    device: str
    nr: int
    #: 0, or -errno: what a call that succeeds returns may be an fd's number.
    result: int

    def text(self) -> str:
        """Without the device."""
        return f"{call_name(self.nr)} = {result_text(self.result)}"


@dataclass
class Path:
    """Gives the control path one by one, and counts the data path; in bounded memory."""

    reader: Reader
    data: dict[Kind, Calls] = field(default_factory=dict)
    #: Crossings that are missing.
    lost: int = 0

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        """Line and record. RecordingError; OSError."""
        for entry in self.reader:
            match entry:
                case Lost():
                    self.lost += entry.count
                case Counted():
                    self._count(entry, entry.count, None)
                case Called() if entry.nr in DATA_PATH:
                    self._count(entry, 1, entry.time)
                case _:
                    yield self.reader.line, entry

    def _count(self, call: Called | Counted, count: int, time: float | None) -> None:
        kind = Kind(call.device, call.nr, min(call.result, 0))
        calls = self.data.get(kind)
        if calls is None:
            if len(self.data) == _MOST_KINDS:
                raise RecordingError(
                    f"{self.reader.name}, line {self.reader.line}: more than {_MOST_KINDS} kinds "
                    "of calls on the data path"
                )
            calls = self.data[kind] = Calls()
        calls.count += count
        if time is not None:
            calls.first = time if calls.first is None else calls.first
            calls.last = time


def lane_of(record: Record) -> str:
    """Who did it: framework, or program."""
    return "framework" if isinstance(record, Messaged) else "program"


def device_of(record: Record) -> str:
    """Which device it is about: what names one on a control socket is about that one, too. Empty:
    about none."""
    if record.device or not isinstance(record, Called):
        return record.device
    match record.nr:
        case Ioctl.CREATE_DEV:
            try:
                return DevConfig.unpack(record.payload).name
            except ValueError:
                return ""
        case Ioctl.DESTROY_DEV | ExtCall.OPEN:
            return unpack_name(record.payload)
    return ""
