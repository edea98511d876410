"""The program: parse, run, print, and end with the right exit code."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from rich.console import Console

from vduse.daemon import cli, logs
from vduse.daemon.commands import TABLE
from vduse.daemon.errors import EXIT_FAULT, EXIT_USER, Stopped, UserError
from vduse.daemon.signals import Stopper
from vduse.daemon.table import Context


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the process's exit code (see :mod:`vduse.daemon.errors`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(cli.overview(TABLE), end="")
        return 0
    if arguments[0] == "--version":
        print(f"vduse {importlib.metadata.version('vduse')}")
        return 0
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
        return _fault(error)


def _run(arguments: Sequence[str]) -> int:
    invocation = cli.parse(TABLE, arguments)
    logs.setup(invocation.verbosity)
    stopper = Stopper()
    context = Context(Console(highlight=False), Console(stderr=True, highlight=False), stopper)
    command = invocation.command
    with stopper.installed():
        facts = command.run(invocation.options, context)
        if invocation.json:
            print(json.dumps(dataclasses.asdict(facts), indent=2))
        else:
            command.show(facts, context)
        sys.stdout.flush()
    return command.exit_code(facts)


def _fault(error: Exception) -> int:
    if logging.getLogger("vduse").isEnabledFor(logging.INFO):
        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    print(
        f"vduse: internal fault: {what} (run again with -v for the traceback, and report it)",
        file=sys.stderr,
    )
    return EXIT_FAULT


if __name__ == "__main__":
    sys.exit(main())
