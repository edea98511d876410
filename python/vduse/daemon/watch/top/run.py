"""Looks again and again."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from rich.live import Live
from rich.text import Text

from vduse.daemon.errors import Stopped, UserError
from vduse.daemon.table import Context
from vduse.daemon.watch.ask import ask
from vduse.daemon.watch.commands import TopOptions
from vduse.daemon.watch.top.rates import Frame, between
from vduse.daemon.watch.top.view import lines, styled

#: Seconds that the daemon has to answer.
_TIMEOUT = 5.0


def top(options: TopOptions, context: Context) -> Generator[Frame]:
    """Frames as they come; on a terminal only the last one, after a screen that shows each.
    UserError: the daemon cannot be reached."""
    if options.once or context.json or not context.out.is_terminal:
        for frame in _frames(options):
            yield frame
            if options.once:
                return
    else:
        last = _screen(options, context)
        if last is not None:
            yield last


def show(frame: Frame, context: Context) -> None:
    """As plain lines."""
    for line in lines(frame):
        print(line.text, file=context.out.file)
    print(file=context.out.file, flush=True)


def _frames(options: TopOptions) -> Iterator[Frame]:
    former = ask(options.socket, buckets=True, timeout=_TIMEOUT)
    while True:
        _pause(options)
        now = ask(options.socket, buckets=True, timeout=_TIMEOUT)
        yield between(former, now)
        former = now


def _pause(options: TopOptions) -> None:
    """Until the next look. A signal ends it."""
    time.sleep(options.interval)


def _screen(options: TopOptions, context: Context) -> Frame | None:
    """Until a signal; the last frame there was. A daemon that goes may come back."""
    last: Frame | None = None
    former = ask(options.socket, buckets=True, timeout=_TIMEOUT)
    first = Text(f"looking at {options.socket} for {options.interval:g} s; Ctrl-C ends")
    try:
        with Live(first, console=context.out, screen=True) as live:
            while True:
                _pause(options)
                try:
                    now = ask(options.socket, buckets=True, timeout=_TIMEOUT)
                except UserError as error:
                    live.update(Text(f"{error}\n", "bold red"))
                    continue
                last, former = between(former, now), now
                live.update(styled(last))
    except Stopped:
        return last
