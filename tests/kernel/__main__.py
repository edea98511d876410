"""A command in a guest: ``python -m tests.kernel [OPTIONS] -- COMMAND``, as root, in this folder.

The exit status is the command's; 125 where the guest went away without one.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from tests.kernel.fetch import KERNELS, BedError, kernel
from tests.kernel.vm import VM, Machine, Stopped


def main(argv: list[str] | None = None) -> int:
    """Runs the command in the guest."""
    parser = argparse.ArgumentParser(prog="make kernel", description=__doc__)
    parser.add_argument("--kernel", choices=list(KERNELS), default="7.2")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=2048, help="MiB")
    parser.add_argument("--options", default="", help="more of the kernel's command line")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for all of it")
    parser.add_argument("command", nargs="+", help="one argument: for sh; several: a program's")
    args = parser.parse_args(argv)
    [first, *others] = args.command
    command = shlex.join([first, *others]) if others else first
    machine = Machine(args.cpus, args.memory, args.options)
    try:
        with VM(kernel(args.kernel), command, machine=machine) as vm:
            return vm.wait(args.timeout)
    except BedError as why:
        print(f"error: {why}", file=sys.stderr)
        return 2
    except Stopped as why:
        print(f"error: {why}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
