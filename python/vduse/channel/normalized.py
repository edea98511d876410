"""What crossed a channel without what differs from run to run."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from vduse.channel.tap import Called, Messaged, Record, Responded
from vduse.control import abi

#: Unanswered messages of a device that are remembered: a framework waits for each in a thread.
_MOST_UNANSWERED = 1 << 12


@dataclass
class _Ids:
    """The messages of one device."""

    given: int = 0
    unanswered: OrderedDict[int, int] = field(default_factory=OrderedDict)

    def of_message(self, request_id: int) -> int:
        if request_id not in self.unanswered:
            self.given += 1
            self.unanswered[request_id] = self.given
            if len(self.unanswered) > _MOST_UNANSWERED:
                self.unanswered.popitem(last=False)
        return self.unanswered[request_id]

    def of_response(self, request_id: int) -> int:
        return self.unanswered.pop(request_id, 0)


class Normalizer:
    """Makes the records of one recording comparable with another's, one after the other:

    - times are 0,
    - messages are numbered from 1 on, by device; an answer has the number of the unanswered
      message that it is for, 0 where there is none (a message that comes again to the next
      opener keeps its number),
    - numbers of kick fds are 0 (-1 stays), addresses of virtqueues and of user memory 1 where
      there is any,
    - of a struct that VQ_GET_INFO fills there is the index, of DESTROY_DEV's the name to its NUL:
      what else lies there is whatever the caller's memory had.
    """

    def __init__(self) -> None:
        self._ids: defaultdict[str, _Ids] = defaultdict(_Ids)

    def __call__(self, record: Record) -> Record:
        """The next record, normalized."""
        record = replace(record, time=0.0)
        match record:
            case Messaged(device=device, request=request):
                number = self._ids[device].of_message(request.request_id)
                return replace(record, request=replace(request, request_id=number))
            case Responded(device=device, response=abi.DevResponse() as response):
                number = self._ids[device].of_response(response.request_id)
                return replace(record, response=replace(response, request_id=number))
            case Called():
                return _without_numbers(record)
        return record


def normalized(records: Iterable[Record]) -> list[Record]:
    """All of them, through one :class:`Normalizer`."""
    return list(map(Normalizer(), records))


def _without_numbers(call: Called) -> Called:
    try:
        match call.nr:
            case abi.Ioctl.VQ_SETUP_KICKFD:
                eventfd = abi.VqEventfd.unpack(call.payload)
                return replace(call, payload=replace(eventfd, fd=min(eventfd.fd, 0)).pack())
            case abi.Ioctl.VQ_GET_INFO:
                index = abi.VqInfo(abi.VqInfo.unpack(call.payload).index)
                answer = _without_addresses(call.answer) if call.answer else b""
                return replace(call, payload=index.pack(), answer=answer)
            case abi.Ioctl.DESTROY_DEV:
                return replace(call, payload=abi.pack_name(abi.unpack_name(call.payload)))
            case abi.Ioctl.IOTLB_REG_UMEM | abi.Ioctl.IOTLB_DEREG_UMEM:
                umem = abi.IovaUmem.unpack(call.payload)
                return replace(call, payload=replace(umem, uaddr=min(umem.uaddr, 1)).pack())
    except ValueError:  # no such struct: it is compared as it is
        pass
    return call


def _without_addresses(answer: bytes) -> bytes:
    info = abi.VqInfo.unpack(answer)
    return replace(
        info,
        desc_addr=min(info.desc_addr, 1),
        driver_addr=min(info.driver_addr, 1),
        device_addr=min(info.device_addr, 1),
    ).pack()
