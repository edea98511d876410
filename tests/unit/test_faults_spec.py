"""--fault as it is spelled."""

from __future__ import annotations

import pytest

from vduse.run.faults.spec import FaultSpec, help_text
from vduse.run.faults.table import KINDS
from vduse.run.faults.trigger import Trigger


@pytest.mark.parametrize(
    ("text", "trigger"),
    [
        ("kill", Trigger(after=1000, times=1)),
        ("kill:after=10000,times=3", Trigger(after=10000, times=3)),
        ("kill:times=3", Trigger(after=1000, times=3)),
        ("rebind:every=2s", Trigger(every=2.0)),
        ("rebind:every=500ms,times=4", Trigger(every=0.5, times=4)),
        ("late-enable:by=2s", None),
    ],
)
def test_when(text: str, trigger: Trigger | None) -> None:
    assert FaultSpec.parse(text).trigger == trigger


def test_options_have_defaults() -> None:
    assert FaultSpec.parse("storm").values == {"messages": 500}
    assert FaultSpec.parse("storm:after=3,messages=7").values == {"messages": 7}
    assert FaultSpec.parse("silent:for=1500ms").values == {"for": 1.5}
    assert FaultSpec.parse("late-enable:queue=0").values == {"by": 1.0, "queue": 0}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("kil", "no fault 'kil', did you mean 'kill'?; there are: late-enable, reset"),
        ("", "no fault ''; there are: late-enable"),
        ("kill:afer=3", "fault kill has no option 'afer', did you mean 'after'?; there are: after"),
        ("late-enable:after=3", "fault late-enable has no option 'after'; there are: by, queue"),
        ("kill:after", "fault kill: 'after' is no KEY=VALUE"),
        ("kill:after=", "fault kill: 'after=' is no KEY=VALUE"),
        ("kill:after=0", "fault kill: '0' is not a whole number above 0"),
        ("kill:after=1,after=2", "fault kill: 'after' is given twice"),
        ("kill:after=1,every=2s", "fault kill: either 'after' or 'every'"),
        ("kill:every=2", "fault kill: '2' is not a time"),
        ("kill:every=0s", "fault kill: '0s': a time above 0"),
        ("silent:for=x", "fault silent: for: 'x' is not a time"),
        ("storm:messages=-1", "fault storm: messages: '-1' is not a whole number above 0"),
    ],
)
def test_a_mistake_is_named(text: str, error: str) -> None:
    with pytest.raises(ValueError) as raised:
        FaultSpec.parse(text)
    assert str(raised.value).startswith(error)


def test_the_help_has_each_fault_and_fits_a_terminal() -> None:
    lines = help_text().splitlines()
    assert max(map(len, lines)) <= 98
    for name, kind in KINDS.items():
        assert any(line.startswith(f"  {name} ") and kind.summary in line for line in lines)
