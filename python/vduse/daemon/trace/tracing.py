"""The files that `--trace` and `--trace-json` write."""

from __future__ import annotations

import importlib.metadata
import os
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from vduse.channel.base import EXT_CALLFD, EXT_INFLIGHT, EXT_KICKFD, EXT_LOG, ControlPort
from vduse.channel.recorder import TEXT_BEGIN, FileTap, recording_tap, text_tap, utc_now
from vduse.channel.recording import Header
from vduse.channel.tap import Tap, tee
from vduse.channel.tapped import TappedControl
from vduse.daemon.errors import UserError, image_error

#: How files begin that may be written over.
_OURS = (b'{"vduse-recording":', TEXT_BEGIN)
_STDERR = 2
#: Of files that are made.
_MODE = 0o666


def header_of_kernel() -> Header:
    """Of a device of this program's on the kernel, seen from its side."""
    return _header("kernel", os.uname().release, "device", (EXT_INFLIGHT,), _own_program())


def header_of_embedded(profile: str) -> Header:
    """Of devices of this program's on the framework in this process, seen from the framework's
    side."""
    extensions = (EXT_CALLFD, EXT_INFLIGHT, EXT_KICKFD, EXT_LOG)
    return _header("embedded", profile, "framework", extensions, _own_program())


def header_of_run(profile: str, program: Sequence[str]) -> Header:
    """Of another program's devices, under `vduse run`. ``program``: it, and its arguments."""
    return _header("embedded", profile, "framework", (), program)


class Tracing:
    """Writes from its making to :meth:`close`; a context manager. Where a file is a pipe, making
    it waits for a reader."""

    def __init__(self, trace: str | None, trace_json: str | None, header: Header) -> None:
        """The options' values. UserError: a file cannot be written, or has other contents."""
        if trace and trace_json and os.path.realpath(trace) == os.path.realpath(trace_json):
            raise UserError("--trace and --trace-json name the same file: name two")
        self._taps: list[FileTap] = []
        try:
            if trace is not None:
                self._taps.append(text_tap(_open(trace), trace or "stderr", header))
            if trace_json is not None:
                self._taps.append(recording_tap(_open(trace_json), trace_json, header))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def tap(self) -> Tap | None:
        """For a framework; None: neither option was given."""
        return tee(self._taps)

    def tapped(self, control: ControlPort) -> ControlPort:
        """For a device: the port that it is given, with the tap where there is one."""
        tap = self.tap
        return control if tap is None else TappedControl(control, tap, self._count)

    def close(self) -> None:
        """Writes what is left, and the end."""
        for tap in self._taps:
            tap.close()

    def _count(self, device: str, calls: Counter[tuple[int, int]]) -> None:
        for tap in self._taps:
            tap.count(device, calls)


def _header(
    framework: Literal["embedded", "kernel"],
    kernel: str,
    seen_by: Literal["framework", "device"],
    extensions: tuple[str, ...],
    program: Sequence[str],
) -> Header:
    return Header(
        version=importlib.metadata.version("vduse"),
        started=utc_now(),
        framework=framework,
        kernel=kernel,
        seen_by=seen_by,
        extensions=extensions,
        program=tuple(program),
    )


def _own_program() -> tuple[str, ...]:
    return ("vduse", *sys.argv[1:])


def _open(path: str) -> int:
    """To write, from its beginning; empty: stderr. UserError."""
    if not path:
        return os.dup(_STDERR)
    try:
        _check(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(path, flags, _MODE)
    except OSError as error:
        raise image_error(path, error) from None


def _check(path: str) -> None:
    """UserError: it has contents that may be somebody's."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if stat.S_ISBLK(found.st_mode):
        raise UserError(f"{path}: it is a block device: name another file")
    if stat.S_ISREG(found.st_mode) and found.st_size:
        with open(path, "rb") as file:
            if not file.read(max(map(len, _OURS))).startswith(_OURS):
                raise UserError(f"{path}: it has contents that are no trace: name another file")
