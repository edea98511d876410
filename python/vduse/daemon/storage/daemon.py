"""The daemon: from the options, in their order, to its end."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from vduse.channel.base import ControlPort
from vduse.daemon.qmp.arguments import convert
from vduse.daemon.qmp.errors import ArgumentError, QmpError
from vduse.daemon.qmp.server import QmpServer
from vduse.daemon.qmp.table import CommandTable
from vduse.daemon.storage.chardevs import Chardev
from vduse.daemon.storage.commands import OPTIONS, commands
from vduse.daemon.storage.keyval import parse_flat, parse_object
from vduse.daemon.storage.models import ChardevOptions, MonitorOptions
from vduse.daemon.storage.pidfile import PidFile
from vduse.daemon.storage.store import Store

_ID = re.compile("[A-Za-z][A-Za-z0-9._-]*")


class OptionError(Exception):
    """An option that cannot be: which one, and why."""


class Daemon:
    """Runs from its making to :meth:`close`. Its monitors answer once everything is made."""

    def __init__(
        self,
        control: ControlPort,
        options: Sequence[tuple[str, str]],
        *,
        pidfile: str | None = None,
        interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """``control`` stays the caller's. ``options``: name and text of --chardev, --monitor,
        --blockdev and --export, in the order given. ``interruptible`` is around the wait for a
        chardev's first client, which takes as long as it takes. OptionError."""
        #: Set when quit was asked for.
        self.quitting = threading.Event()
        self._interruptible = interruptible
        self._chardevs: dict[str, Chardev] = {}
        self._pidfile: PidFile | None = None
        self._monitors: list[tuple[Chardev, MonitorOptions]] = []
        with ExitStack() as exits:
            self.store = Store(control, self._emit)
            rows = commands(self.store, self.quitting.set)
            self._table = CommandTable(rows)
            self._server = QmpServer(rows)
            exits.callback(self._end)
            exits.callback(self.store.close)
            for name, text in options:
                try:
                    self._option(name, text)
                except QmpError as error:
                    raise OptionError(f"--{name} {text}: {error}") from error
            if pidfile is not None:
                try:
                    self._pidfile = PidFile(pidfile)
                except QmpError as error:
                    raise OptionError(str(error)) from error
            for chardev, monitor in self._monitors:
                self._server.listen(chardev, pretty=monitor.pretty)
            self._exits = exits.pop_all()

    def close(self) -> None:
        """Ends the exports and the nodes, which clients are told, then the monitors."""
        self._exits.close()

    def _option(self, name: str, text: str) -> None:
        if name in OPTIONS:
            command, implied = OPTIONS[name]
            row = self._table[command]
            raw, strings = parse_object(text, implied)
            row.run(row.parse(raw, strings=strings))
        elif name == "chardev":
            self._chardev(convert(parse_flat(text, "backend"), ChardevOptions, strings=True))
        else:
            raw, strings = parse_object(text, "chardev")
            self._monitor(convert(raw, MonitorOptions, strings=strings))

    def _chardev(self, options: ChardevOptions) -> None:
        if not _ID.fullmatch(options.id):
            raise ArgumentError("Parameter 'id' expects an identifier")
        if options.id in self._chardevs:
            raise QmpError(f"Chardev with id '{options.id}' already exists")
        chardev = self._chardevs[options.id] = Chardev(options)
        if options.wait:
            with self._interruptible():
                chardev.wait()

    def _monitor(self, options: MonitorOptions) -> None:
        chardev = self._chardevs.get(options.chardev)
        if chardev is None:
            raise QmpError(f'chardev "{options.chardev}" not found')
        if chardev.in_use:
            raise QmpError(f"Device '{options.chardev}' is in use")
        chardev.in_use = True
        self._monitors.append((chardev, options))

    def _emit(self, event: str, data: dict[str, Any]) -> None:
        self._server.emit(event, data)

    def _end(self) -> None:
        """After everything else."""
        self._server.close()
        for chardev in self._chardevs.values():
            chardev.close()
        if self._pidfile is not None:
            self._pidfile.close()
