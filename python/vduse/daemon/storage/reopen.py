"""blockdev-reopen: nodes come to other options, all or none, while exports of them are in use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack

from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports.export import Export
from vduse.daemon.storage.exports.table import Exports
from vduse.daemon.storage.nodes.graph import Graph
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.nodes.plan import Plan
from vduse.daemon.storage.reservations import Work

#: What opening and closing raise.
_FAILURES = (QmpError, OSError, ValueError)


class Reopening:
    """Exports are paused, nodes closed from the highest on and opened from the lowest on, exports
    go on. A file's lock is given back before it is taken again, and an image is stored before it is
    read: nothing is opened twice."""

    def __init__(self, nodes: Graph, exports: Exports, lock: threading.Condition) -> None:
        """``lock``: theirs."""
        self._nodes = nodes
        self._exports = exports
        self._lock = lock

    def run(self, given: Sequence[Blockdev]) -> None:
        """QmpError, OSError: all is as before, unless the text says that it could not be."""
        with ExitStack() as reserved:
            with self._lock:
                plan = self._nodes.plan(given)
                if plan is None:
                    return
                exports = self._exports.on(plan.going)
                reserved.enter_context(self._nodes.held(plan.names, Work.REOPENING))
                reserved.enter_context(self._exports.held(exports, Work.REOPENING))
                self._nodes.take_out(plan.going)
            try:
                for node in plan.going:
                    node.check_way_back()
                self._pause(exports)
            except BaseException:
                self._nodes.enter(plan.going[::-1])
                raise
            self._exchange(plan, exports)

    def _pause(self, exports: Sequence[Export]) -> None:
        """All of them, or none. QmpError."""
        with ExitStack() as undo:
            for export in exports:
                export.pause()
                undo.callback(export.resume, export.node)
            undo.pop_all()

    def _exchange(self, plan: Plan, exports: Sequence[Export]) -> None:
        try:
            self._nodes.end(plan.going)
            self._go_on(plan.coming, exports)
        except _FAILURES as error:
            try:
                self._go_on(plan.former, exports)
            except _FAILURES as worse:
                self._exports.end(exports)
                names = ", ".join(f"'{options.node_name}'" for options in plan.former)
                raise QmpError(
                    f"{error}; nor could it be as before: {worse}; "
                    f"these nodes and their exports have ended: {names}"
                ) from error
            raise

    def _go_on(self, roots: Sequence[Blockdev], exports: Sequence[Export]) -> None:
        """Opens nodes, and has the exports go on, on those of the same names. QmpError, OSError:
        the nodes are closed and the exports paused again."""
        made = self._nodes.open(roots)
        by_name = {node.name: node for node in made}
        with ExitStack() as undo:
            undo.callback(self._nodes.end, made[::-1])
            for export in exports:
                node = by_name[export.node.name]
                export.resume(node)
                undo.callback(export.pause)
            undo.pop_all()
        with self._lock:
            for export in exports:
                export.node.users.add(export.user)
        self._nodes.enter(made)
