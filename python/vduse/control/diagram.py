"""Draws docs/control-path.md from the tables: ``python -m vduse.control.diagram``."""

from __future__ import annotations

from vduse.control.messages import MESSAGES, MessageRule
from vduse.control.statuses import TRANSITIONS, Action, DeviceState, Transition

_HEAD = """\
# The control path of a device

Drawn from the tables in `vduse.control` by `python -m vduse.control.diagram`; a test compares.

## Device states

A SET_STATUS message adds status bits, or resets with 0. What an arrow adds behind the bit is
what the device does before it answers OK; where it cannot, it answers FAILED and stays.
"""


def _edge(row: Transition) -> str:
    label = "0" if row.bit is None else str(row.bit.name)
    if row.action is not Action.NONE:
        label += f": {row.action.value}"
    return f"    {row.state.value} --> {row.to.value}: {label}"


def mermaid() -> str:
    """The state diagram. Reset and FAILED lead from everywhere and are drawn once."""
    lines = ["stateDiagram-v2", f"    [*] --> {DeviceState.RESET.value}"]
    lines += [_edge(row) for row in TRANSITIONS if not _from_everywhere(row)]
    everywhere = {row.bit: row for row in TRANSITIONS if _from_everywhere(row)}
    for bit, row in everywhere.items():
        label = "0" if bit is None else str(bit.name)
        does = "" if row.action is Action.NONE else f": {row.action.value}"
        lines.append(f"    note right of {row.to.value}: {label} from every state{does}")
    return "\n".join(lines)


def _from_everywhere(row: Transition) -> bool:
    return row.to in (DeviceState.RESET, DeviceState.FAILED)


def _message_row(rule: MessageRule) -> str:
    missing = [state.value for state in DeviceState if state not in rule.states]
    states = "any" if not missing else "any but " + ", ".join(missing)
    since = "extension" if rule.extension else f"{rule.since}"
    return f"| {rule.type.name} | {since} | {states} | {rule.does} |"


def message_table() -> str:
    """The messages as a Markdown table."""
    head = ["| message | API version | states | the device |", "|---|---|---|---|"]
    return "\n".join(head + [_message_row(rule) for rule in MESSAGES])


def page() -> str:
    """All of docs/control-path.md."""
    return f"{_HEAD}\n```mermaid\n{mermaid()}\n```\n\n## Messages\n\n{message_table()}\n"


if __name__ == "__main__":
    print(page(), end="")
