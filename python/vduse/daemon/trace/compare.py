"""`vduse trace compare`: two recordings side by side, in bounded memory.

Each device is compared by itself, and of a device what the framework says and what the program
does: which is first is a matter of time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from vduse.channel.base import EXT_CALLFD
from vduse.channel.normalized import Normalizer
from vduse.channel.recording import Reader, RecordingError
from vduse.channel.tap import Called, Messaged, Record, Responded
from vduse.control.abi import DevResponse, ExtCall, Ioctl, RequestType
from vduse.daemon.trace.commands import CompareOptions
from vduse.daemon.trace.path import MOST_DEVICES, Kind, Path, device_of, lane_of
from vduse.daemon.trace.show import notes
from vduse.daemon.trace.source import opened

#: Steps shown before two recordings part, and from there on.
_BEFORE = 3
_AFTER = 5
#: Steps of one recording that wait for the other's.
_MOST_AHEAD = 100_000
_CALLS = frozenset(ExtCall)
_MESSAGES = frozenset(
    {RequestType.UPDATE_CALLFD, RequestType.UPDATE_KICKFD, RequestType.UPDATE_LOG}
)
#: Messages of extensions whose answers have not come yet.
_MOST_UNANSWERED = 1 << 12


@dataclass(frozen=True)
class Step:
    """What happened on the control path: ids are of that device, from 1."""

    #: Of the file, from 1.
    line: int
    #: Seconds since the start.
    time: float
    text: str


@dataclass(frozen=True)
class Parting:
    """Where one lane of a device's control path parts from the other's."""

    #: Empty: the control node, as far as it is about no device.
    device: str
    #: framework: its messages; program: its calls and answers.
    lane: str
    #: How many steps are the same up to there.
    same: int
    #: The last ones of these, as in the first recording.
    before: tuple[Step, ...]
    #: What each did then; empty: nothing more.
    ours: tuple[Step, ...]
    theirs: tuple[Step, ...]


@dataclass(frozen=True)
class OnlyOne:
    """Calls of a data path that the other one does not have."""

    device: str
    call: str
    count: int
    #: Whose: ours, or theirs.
    where: str


@dataclass(frozen=True)
class Comparison:
    """Two recordings, ``ours`` and ``theirs`` in the order given."""

    equal: bool
    ours: str
    theirs: str
    devices: tuple[str, ...]
    #: Calls and messages of the control path that are the same.
    same: int
    #: Kinds of data path calls that both have.
    same_kinds: int
    #: By the time in ours.
    partings: tuple[Parting, ...]
    data_path: tuple[OnlyOne, ...]
    #: What was left aside, and what is not as it should be.
    notes: tuple[str, ...]


def compare_files(options: CompareOptions) -> Comparison:
    """UserError: no recording, or damaged."""
    with ExitStack() as files:
        ours = files.enter_context(opened(options.file))
        return compare(ours, files.enter_context(opened(options.other)))


def compare(ours: Reader, theirs: Reader) -> Comparison:
    """Reads both to their ends. RecordingError: damaged, or in no comparable order; OSError."""
    extensions = [frozenset(reader.header.extensions) for reader in (ours, theirs)]
    plain = extensions[0] != extensions[1]
    sides = [_Side(reader, plain=plain) for reader in (ours, theirs)]
    lanes = _Lanes(ours.name)
    # In turns: then little of one waits for the other.
    for both in zip_longest(*sides):
        for which, found in enumerate(both):
            if found is not None:
                lanes.take(which, found)
    partings = lanes.partings()
    # Where an irq is a write to an eventfd, there is no call.
    no_irqs = len({EXT_CALLFD in offered for offered in extensions}) > 1
    kinds = [side.kinds(no_irqs=no_irqs) for side in sides]
    only = [*_only(kinds[0], kinds[1], "ours"), *_only(kinds[1], kinds[0], "theirs")]
    return Comparison(
        equal=not (partings or only),
        ours=ours.name,
        theirs=theirs.name,
        devices=lanes.devices(),
        same=lanes.same(),
        same_kinds=len(kinds[0].keys() & kinds[1].keys()),
        partings=tuple(partings),
        data_path=tuple(only),
        notes=tuple(_notes(sides, plain=plain)),
    )


class _Found(NamedTuple):
    """A record, normalized, and where it was found."""

    line: int
    time: float
    record: Record

    def step(self) -> Step:
        """As it is shown."""
        return Step(self.line, self.time, self.record.line())


class _Side:
    """One recording's control path, comparable."""

    def __init__(self, reader: Reader, *, plain: bool) -> None:
        """``plain``: without what linux/vduse.h does not have."""
        self.reader = reader
        self.path = Path(reader)
        self._normalize = Normalizer()
        self._plain = plain
        self._skipped: OrderedDict[tuple[str, int], None] = OrderedDict()

    def __iter__(self) -> Iterator[_Found]:
        """The control path's records."""
        for line, record in self.path:
            if not (self._plain and self._is_extension(record)):
                yield _Found(line, record.time, self._normalize(record))

    def kinds(self, *, no_irqs: bool) -> dict[Kind, int]:
        """The data path, once the control path is through."""
        return {
            kind: calls.count
            for kind, calls in self.path.data.items()
            if not (no_irqs and kind.nr == Ioctl.VQ_INJECT_IRQ)
        }

    def _is_extension(self, record: Record) -> bool:
        match record:
            case Called(nr=nr):
                return nr in _CALLS
            case Messaged(device=device, request=request) if request.type in _MESSAGES:
                self._skipped[device, request.request_id] = None
                if len(self._skipped) > _MOST_UNANSWERED:
                    self._skipped.popitem(last=False)
                return True
            case Responded(device=device, response=DevResponse(request_id=number)):
                return self._skipped.pop((device, number), self) is None
        return False


@dataclass
class _Lane:
    """One lane of one device, in both recordings."""

    same: int = 0
    before: deque[_Found] = field(default_factory=lambda: deque(maxlen=_BEFORE))
    #: What one has, and the other not yet.
    ahead: tuple[deque[_Found], deque[_Found]] = field(default_factory=lambda: (deque(), deque()))
    #: Once they have parted: what each did from there on.
    after: tuple[list[_Found], list[_Found]] | None = None


class _Lanes:
    """All lanes."""

    def __init__(self, name: str) -> None:
        """``name`` is for errors."""
        self._name = name
        #: By device, and who does it.
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._ahead = 0

    def take(self, which: int, found: _Found) -> None:
        """The next one of one recording. RecordingError."""
        key = device_of(found.record), lane_of(found.record)
        if key not in self._lanes and len(self._lanes) == 2 * MOST_DEVICES:
            raise RecordingError(f"{self._name}: more than {MOST_DEVICES} devices: not compared")
        self._step(self._lanes.setdefault(key, _Lane()), which, found)

    def devices(self) -> tuple[str, ...]:
        """Those that have names."""
        return tuple(sorted({device for device, _ in self._lanes if device}))

    def same(self) -> int:
        """Steps that are the same in both."""
        return sum(lane.same for lane in self._lanes.values())

    def partings(self) -> list[Parting]:
        """Once both are through."""
        for lane in self._lanes.values():
            if lane.after is None and any(lane.ahead):
                self._part(lane)
        found = [
            Parting(device, who, lane.same, _steps(lane.before), *map(_steps, lane.after))
            for (device, who), lane in self._lanes.items()
            if lane.after is not None
        ]
        return sorted(found, key=lambda parting: (parting.ours or parting.theirs)[0].time)

    def _step(self, lane: _Lane, which: int, found: _Found) -> None:
        if lane.after is not None:
            if len(lane.after[which]) < _AFTER:
                lane.after[which].append(found)
            return
        other = lane.ahead[1 - which]
        lane.ahead[which].append(found)
        if not other:
            self._ahead += 1
            if self._ahead > _MOST_AHEAD:
                raise RecordingError(
                    f"{self._name}: what the two do is too far apart to be compared: more than "
                    f"{_MOST_AHEAD} calls and messages of one device before another's"
                )
        elif other[0].record == found.record:
            both = [ahead.popleft() for ahead in lane.ahead]
            self._ahead -= 1
            lane.same += 1
            lane.before.append(both[0])
        else:
            self._part(lane)

    def _part(self, lane: _Lane) -> None:
        ours, theirs = lane.ahead
        lane.after = list(ours)[:_AFTER], list(theirs)[:_AFTER]
        self._ahead -= max(map(len, lane.ahead))
        for ahead in lane.ahead:
            ahead.clear()


def _steps(found: Iterable[_Found]) -> tuple[Step, ...]:
    return tuple(each.step() for each in found)


def _only(kinds: dict[Kind, int], others: dict[Kind, int], where: str) -> Iterator[OnlyOne]:
    for kind in sorted(kinds.keys() - others.keys()):
        yield OnlyOne(kind.device, kind.text(), kinds[kind], where)


def _notes(sides: list[_Side], *, plain: bool) -> Iterator[str]:
    for side in sides:
        for note in notes(side.reader.cut, side.path.lost):
            yield f"{side.reader.name}: {note}"
    if plain:
        yield "extensions of the channel are left aside: only one of the two has them"
