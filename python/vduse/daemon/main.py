"""The program: parse, run, print, and end with the right exit code."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from rich.console import Console

from vduse.daemon import cli, logs
from vduse.daemon.commands import TABLE
from vduse.daemon.errors import EXIT_FAULT, EXIT_USER, Stopped, UserError, refusal
from vduse.daemon.signals import Stopper
from vduse.daemon.table import Context


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the process's exit code (see :mod:`vduse.daemon.errors`)."""
    _open_standard_streams()
    with logs.put_back():
        return _exit_code(list(sys.argv[1:] if argv is None else argv))


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        return _run(arguments)
    except UserError as error:
        print(f"vduse: error: {error}", file=sys.stderr)
        return EXIT_USER
    except Stopped as stopped:
        print("vduse: stopped", file=sys.stderr)
        return stopped.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAULT
    except SystemExit as end:  # argparse, after --help
        return int(end.code or 0)
    except Exception as error:
        if (advice := refusal(error)) is None:
            return _fault(error)
        _traceback(error)
        print(f"vduse: error: {advice}", file=sys.stderr)
        return EXIT_USER


def _run(arguments: Sequence[str]) -> int:
    if (overview := cli.overview_asked(TABLE, arguments)) is not None:
        _print(overview)
        return 0
    if arguments[0] == "--version":
        _print(f"vduse {importlib.metadata.version('vduse')}\n")
        return 0
    invocation = cli.parse(TABLE, arguments)
    logs.setup(invocation.verbosity)
    stopper = Stopper()
    # What is printed has names of the user's in it: nothing of them is a colour or an emoji.
    out, err = (Console(stderr=to, highlight=False, emoji=False) for to in (False, True))
    context = Context(out, err, stopper, invocation.json)
    command = invocation.command
    with stopper.installed():
        latest = command.run(invocation.options, context)
        if isinstance(latest, Generator):
            with closing(latest) as facts:
                for latest in facts:
                    _show(latest, invocation, context, indent=None)
        else:
            _show(latest, invocation, context, indent=2)
    return command.exit_code(latest)


def _show(facts: Any, invocation: cli.Invocation, context: Context, indent: int | None) -> None:
    if invocation.json:
        _print(json.dumps(dataclasses.asdict(facts), indent=indent) + "\n")
    else:
        with _output():
            invocation.command.show(facts, context)


def _print(text: str) -> None:
    with _output():
        sys.stdout.write(text)


@contextmanager
def _output() -> Iterator[None]:
    """What is written inside has arrived at the end. UserError: it cannot be written."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Else the interpreter tries again at its end, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UserError(f"the output cannot be written: {error.strerror}") from None


def _open_standard_streams() -> None:
    """Streams that were closed lead nowhere: else sockets of ours would get their numbers."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
        if fd and getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A name that the terminal's encoding lacks: shown as stderr shows it.
        sys.stdout.reconfigure(errors="backslashreplace")


def _traceback(error: Exception) -> None:
    if logging.getLogger("vduse").isEnabledFor(logging.INFO):
        traceback.print_exception(error)


def _fault(error: Exception) -> int:
    _traceback(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    print(
        f"vduse: internal fault: {what} (run again with -v for the traceback, and report it)",
        file=sys.stderr,
    )
    return EXIT_FAULT
