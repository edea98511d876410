"""A fault as it is asked for: ``NAME[:KEY=VALUE[,KEY=VALUE]...]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vduse.control.spelling import did_you_mean
from vduse.run.faults.kind import VIRTIO, Kind, Values, count, seconds
from vduse.run.faults.table import KINDS
from vduse.run.faults.trigger import Trigger

_WHEN = ("after", "every", "times")
_AFTER = 1000
_INDENT = " " * 15


@dataclass(frozen=True)
class FaultSpec:
    """One ``--fault``."""

    #: As it was asked for.
    text: str
    kind: Kind
    values: Values
    #: None: it strikes when its kind does.
    trigger: Trigger | None

    @classmethod
    def parse(cls, text: str) -> FaultSpec:
        """ValueError says what is wrong, and what there is."""
        name, _, rest = text.partition(":")
        kind = KINDS.get(name)
        if kind is None:
            known = ", ".join(KINDS)
            raise ValueError(f"no fault '{name}'{did_you_mean(name, KINDS)}; there are: {known}")
        given = _pairs(kind, rest)
        when = {key: given.pop(key) for key in _WHEN if key in given}
        values = {key: option.default for key, option in kind.options.items()}
        for key, value in given.items():
            values[key] = _parsed(kind, key, value)
        return cls(text, kind, values, _trigger(kind, when))


def help_text() -> str:
    """All faults, for people."""
    lines = ["Faults, as NAME[:KEY=VALUE,...]:"]
    for kind in KINDS.values():
        lines.append(f"  {kind.name:<12} {kind.summary}")
        if kind.drivers == VIRTIO:
            lines.append(f"{_INDENT}with virtio_vdpa only")
        lines.append(f"{_INDENT}clients: {kind.clients}")
        lines += [f"{_INDENT}{key}: {option.help}" for key, option in kind.options.items()]
    lines += [
        "When, of all but late-enable:",
        f"  after=N      after N requests since the last time ({_AFTER} if nothing is said)",
        "  every=TIME   each TIME instead, as 500ms or 2s",
        "  times=N      so often (with after: once if nothing is said; with every: without end)",
        "Examples: --fault kill:after=10000,times=3   --fault rebind:every=2s",
    ]
    return "\n".join(lines)


def _pairs(kind: Kind, rest: str) -> dict[str, str]:
    known = [*kind.options, *(_WHEN if kind.make is not None else ())]
    pairs: dict[str, str] = {}
    for pair in rest.split(",") if rest else []:
        key, equals, value = pair.partition("=")
        if key not in known:
            there = ", ".join(known)
            raise ValueError(
                f"fault {kind.name} has no option '{key}'{did_you_mean(key, known)}; "
                f"there are: {there}"
            )
        if not equals or not value:
            raise ValueError(f"fault {kind.name}: '{pair}' is no KEY=VALUE")
        if key in pairs:
            raise ValueError(f"fault {kind.name}: '{key}' is given twice")
        pairs[key] = value
    return pairs


def _parsed(kind: Kind, key: str, value: str) -> float:
    try:
        return kind.options[key].parse(value)
    except ValueError as error:
        raise ValueError(f"fault {kind.name}: {key}: {error}") from None


def _trigger(kind: Kind, when: Mapping[str, str]) -> Trigger | None:
    if kind.make is None:
        return None
    if "after" in when and "every" in when:
        raise ValueError(f"fault {kind.name}: either 'after' or 'every'")
    try:
        times = count(when["times"]) if "times" in when else None
        if "every" in when:
            return Trigger(every=seconds(when["every"]), times=times)
        after = count(when["after"]) if "after" in when else _AFTER
    except ValueError as error:
        raise ValueError(f"fault {kind.name}: {error}") from None
    return Trigger(after=after, times=times or 1)
