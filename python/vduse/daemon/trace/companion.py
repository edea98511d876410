"""`--trace` and `--trace-json` of `vduse run`."""

from __future__ import annotations

from collections.abc import Sequence

from vduse.daemon.trace.tracing import Tracing, header_of_run
from vduse.run.hooks import Companion


class TraceCompanion(Companion):
    """Writes down what crosses between the program and the framework."""

    def __init__(
        self, trace: str | None, trace_json: str | None, profile: str, program: Sequence[str]
    ) -> None:
        """The options' values. ``program``: it, and its arguments. UserError: a file cannot be
        written, or has other contents. Where one is a pipe, waits for its reader."""
        self._tracing = Tracing(trace, trace_json, header_of_run(profile, program))
        self.tap = self._tracing.tap

    def finish(self) -> None:
        """Writes what is left, and the end."""
        self._tracing.close()
