"""A block device in a process of its own, on a control socket that its parent left open:

    python -m vduse.devices.child '{"control_fd": 3, "name": "disk0", "backend": "memory",
                                    "size": 67108864}'

Prints ``ready NAME`` once it serves, and ends in order on SIGTERM. Tests kill it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from vduse.channel.embedded import inherited
from vduse.device.serve import serve_until_signal
from vduse.devices.local import local_blk


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildArguments:
    """The JSON argument; names and meanings as in :class:`~vduse.devices.blk.BlkDevice` and
    :func:`~vduse.backends.spec.open_backend`."""

    control_fd: int
    name: str
    backend: str
    size: int | None = None
    direct: bool = False
    read_only: bool = False
    queues: int = 1
    queue_size: int = 128
    packed: bool = False
    serial: str = ""
    umem: bool = False
    layers: Sequence[str] = ()
    drain_timeout: float = 20.0


def main(argument: str) -> int:
    """Serves until a signal; the exit code."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    settings = asdict(ChildArguments(**json.loads(argument)))
    with ExitStack() as exits:
        control = inherited(settings.pop("control_fd"))
        exits.callback(control.close)
        return serve_until_signal(lambda: exits.enter_context(local_blk(control, **settings)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
