"""A disk on the kernel: ``python -m tests.kernel.guest.disk_program JSON``, its program.

Serves until its standard input ends; each line of it asks for something, answered in JSON.
:func:`tests.kernel.guest.program.served` starts it.
"""

from __future__ import annotations

import json
import sys

from vduse.backends.spec import open_backend
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice


def main(argument: str) -> None:
    """``argument`` has what ``served`` was given."""
    arguments = json.loads(argument)
    backend = open_backend(arguments["backend"], size=arguments["size"], direct=arguments["direct"])
    control = KernelControl()
    device = BlkDevice(arguments["name"], backend, **arguments["settings"])
    device.start(control)
    print("ready", flush=True)
    for line in sys.stdin:
        answer = device.resize() if line == "resize\n" else device.stats()
        print(json.dumps(answer), flush=True)
    device.close(destroy=True)
    control.close()
    backend.close()


if __name__ == "__main__":
    main(sys.argv[1])
