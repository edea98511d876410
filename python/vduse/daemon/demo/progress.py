"""What the demo does now, on stderr: a bar on a terminal, a line elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn
from rich.text import Text

Advance = Callable[[int, int], None]


class _Count(MofNCompleteColumn):
    """Says nothing where the end is not known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class Steps:
    """One step at a time; each may say how far it is."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def step(self, text: str) -> Iterator[Advance]:
        """A step; call what is yielded with (done, total)."""
        if not self._console.is_interactive:
            self._console.print(f"{text} ...", soft_wrap=True)
            yield lambda done, total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), _Count())
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(text, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
