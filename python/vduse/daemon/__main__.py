"""Where the `vduse` command begins."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Runs the command line; its exit code."""
    # A ^C before and after the command's own handlers ends the process, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vduse.daemon.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
