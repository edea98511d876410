"""The daemon: from the options, in their order, to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from vduse.channel.base import ControlPort
from vduse.daemon.qmp.arguments import convert
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.qmp.server import QmpServer
from vduse.daemon.qmp.table import CommandTable
from vduse.daemon.storage.chardevs import Chardev
from vduse.daemon.storage.commands import OPTIONS, commands
from vduse.daemon.storage.config.document import Table
from vduse.daemon.storage.exports.export import Export
from vduse.daemon.storage.keyval import parse_flat, parse_object
from vduse.daemon.storage.models import ChardevOptions, MonitorOptions
from vduse.daemon.storage.pidfile import PidFile
from vduse.daemon.storage.store import Store
from vduse.daemon.storage.watchdog import Post
from vduse.device.control_thread import ControlThread
from vduse.device.within import within


class OptionError(Exception):
    """An option that cannot be: which one, and why."""


class Daemon:
    """Runs from its making to :meth:`close`. Its monitors answer once everything is made."""

    def __init__(
        self,
        control: ControlPort,
        options: Sequence[tuple[str, str | Table]],
        *,
        pidfile: str | None = None,
        interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
        changed: Callable[[Sequence[Export]], None] = lambda exports: None,
    ) -> None:
        """``control`` stays the caller's. ``options``: name, and text or table, of
        --chardev, --monitor and those of :data:`~vduse.daemon.storage.commands.OPTIONS`, in the
        order given. ``interruptible`` is around the waits for a chardev's first client and for
        servers, which take as long as they take. ``changed``: as of Store. OptionError."""
        #: Set when quit was asked for.
        self.quitting = threading.Event()
        self._interruptible = interruptible
        self._chardevs: dict[str, Chardev] = {}
        self._pidfile: PidFile | None = None
        self._monitors: list[tuple[Chardev, MonitorOptions]] = []
        with ExitStack() as exits:
            self.store = Store(control, self._emit, changed)
            rows = commands(self.store, self.quitting.set)
            self._table = CommandTable(rows)
            self._server = QmpServer(rows)
            exits.callback(self._end)
            exits.callback(self.store.close)
            for name, text in options:
                try:
                    self._option(name, text)
                except QmpError as error:
                    raise OptionError(f"{_shown(name, text)}: {error}") from error
            if pidfile is not None:
                try:
                    self._pidfile = PidFile(pidfile)
                except QmpError as error:
                    raise OptionError(str(error)) from error
            self.store.accept()
            for chardev, monitor in self._monitors:
                self._server.listen(chardev, pretty=monitor.pretty)
            self._exits = exits.pop_all()

    @property
    def loops(self) -> tuple[Post, ...]:
        """The threads without which nothing is controlled: who answers the devices' messages, and
        who reads monitors."""
        return ControlThread.shared().post, self._server.post

    def close(self) -> None:
        """Ends the exports and the nodes, which clients are told, then the monitors."""
        self._exits.close()

    def _option(self, name: str, given: str | Table) -> None:
        if name in OPTIONS:
            row = self._table[OPTIONS[name].command]
            raw, strings = _parse(given, OPTIONS[name].implied)
            model = OPTIONS[name].arguments or row.arguments
            arguments = convert(raw, model, strings=strings)
            # On another thread: a server that does not answer leaves this one to signals.
            with self._interruptible():
                within(None, lambda: row.run(arguments), f"--{name}")
        elif name == "chardev":
            strings = isinstance(given, str)
            flat = parse_flat(given, "backend") if isinstance(given, str) else given.value
            self._chardev(convert(flat, ChardevOptions, strings=strings))
        else:
            raw, strings = _parse(given, "chardev")
            self._monitor(convert(raw, MonitorOptions, strings=strings))

    def _chardev(self, options: ChardevOptions) -> None:
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


def _shown(name: str, given: str | Table) -> str:
    """An option for its error, which logs keep: without a secret's value."""
    if isinstance(given, Table):
        return given.place
    is_secret = name == "object" and "secret" in given
    return f"--{name} {'qom-type=secret,...' if is_secret else given}"


def _parse(given: str | Table, implied: str | None) -> tuple[Mapping[str, Any], bool]:
    """An object, and whether its values are strings. ArgumentError."""
    return parse_object(given, implied) if isinstance(given, str) else (given.value, False)
