"""Facts of `vduse run` for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from shlex import join, quote

from vduse.control.units import format_size
from vduse.daemon.run.facts import (
    Broken,
    Counted,
    Ended,
    Ending,
    Exited,
    Facts,
    Found,
    Serving,
    Started,
)
from vduse.daemon.table import Context


def show(facts: Facts, context: Context) -> None:
    """A line or a few."""
    match facts:
        case Started(starts=1):
            _say(context, f"{join(facts.program)}: runs (pid {facts.pid}), with a /dev/vduse")
            _say(context, f"Ctrl-C or kill {facts.supervisor} ends it in order.")
        case Started():
            _say(context, f"started again (pid {facts.pid})")
        case Serving():
            _show_serving(facts, context)
        case Counted():
            shown = {name: value for name, value in asdict(facts).items() if name != "event"}
            print(json.dumps(shown), file=context.out.file, flush=True)
        case Broken():
            _complain(context, f"{facts.name}: {facts.reason}")
        case Exited():
            _show_exited(facts, context)
        case Ending():
            _say(context, f"ending in order: {facts.reason}")
        case Found():
            for line in facts.lines:
                _say(context, line)
        case Ended():
            for failure in facts.failures:
                _complain(context, failure)
            _say(context, f"ended: {facts.reason}")


def _show_serving(facts: Serving, context: Context) -> None:
    size = f", {format_size(facts.size)}" if facts.size is not None else ""
    driver = f"bound to {facts.driver}" if facts.driver else "bound to no driver"
    plural = "" if facts.queues == 1 else "s"
    queues = f"{facts.queues} virtqueue{plural} of {facts.queue_size}"
    _say(context, f"{facts.name}: {facts.type}{size}, {queues}, {driver}")
    if facts.uri is not None:
        _say(context, f"  nbdinfo {quote(facts.uri)}")
    elif facts.socket is not None:
        _say(context, f"  vhost-user at {facts.socket}")


def _show_exited(facts: Exited, context: Context) -> None:
    how = f"killed by {facts.signal}" if facts.signal else f"ended with {facts.exit_code}"
    when = f"in {facts.restart:g} s" if facts.restart else "at once"
    again = "" if facts.restart is None else f"; starts again {when}"
    say = _say if facts.exit_code == 0 else _complain
    say(context, f"pid {facts.pid}: {how}{again}")


def _say(context: Context, line: str) -> None:
    # Lines to paste are not wrapped, and brackets are no markup.
    context.out.print(line, markup=False, soft_wrap=True)


def _complain(context: Context, line: str) -> None:
    context.err.print(f"vduse: {line}", markup=False, soft_wrap=True)
