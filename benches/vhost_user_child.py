"""A disk at a vhost-user socket, served until SIGTERM."""

from __future__ import annotations

import argparse
import signal
from contextlib import closing

from vduse.channel.embedded import inherited
from vduse.devices.local import local_blk
from vduse.exports.vhost_user import VhostUserServer
from vduse.framework import Framework


def main() -> None:
    """Prints a line once it can be connected to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("queues", type=int)
    parser.add_argument("backend")
    parser.add_argument("--size", type=int)
    parser.add_argument("--direct", action="store_true")
    args = parser.parse_args()
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with (
        Framework() as framework,
        closing(inherited(framework.control())) as control,
        local_blk(
            control,
            "disk0",
            args.backend,
            size=args.size,
            direct=args.direct,
            queues=args.queues,
            queue_size=256,
        ),
    ):
        framework.dev_add("disk0", driver="vhost_vdpa")
        with VhostUserServer(framework.bus.vhost("disk0"), args.path):
            print("ready", flush=True)
            signal.sigwait(ends)
        framework.dev_del("disk0")


if __name__ == "__main__":
    main()
