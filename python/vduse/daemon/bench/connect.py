"""To the server, and the device behind it, set up."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vduse.daemon.bench.commands import BenchOptions
from vduse.daemon.bench.relay import Relay
from vduse.daemon.errors import UserError
from vduse.testing.load import VirtioDriver

#: Seconds that a server has for its part of the handshake.
HANDSHAKE = 10.0

_ADVICE = {
    errno.ENOENT: "no such socket: check the path, and that the server runs",
    errno.ENOTDIR: "a part of the path is not a folder: check the path",
    errno.EACCES: "permission denied: check the socket's owner and mode, and its folder's",
    errno.EPERM: "operation not permitted: check the socket's owner and mode",
    errno.ECONNREFUSED: "nobody listens there: start the server",
    errno.EPROTOTYPE: "a socket of another kind: vhost-user's are stream sockets",
    errno.ELOOP: "its symbolic links go round in a circle: check the path",
    errno.ENAMETOOLONG: "the path is too long for a socket: use a shorter one",
}


@contextmanager
def connected(path: str) -> Iterator[Relay]:
    """UserError."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise UserError(f"{path}: not a socket: name one that a vhost-user server listens at")
        relay = Relay(path)
    except TimeoutError:
        raise UserError(f"{path}: the server accepts no connection: is it stopped?") from None
    except OSError as error:
        # Python has no errno for a path that is longer than a socket's.
        number = error.errno or errno.ENAMETOOLONG
        raise UserError(f"{path}: {_ADVICE.get(number, error.strerror)}") from None
    with relay:
        yield relay


def set_up(options: BenchOptions, relay: Relay) -> VirtioDriver:
    """The driver on the device. UserError.

    The driver waits for replies without end, so it does so on a thread of its own, which ends with
    the connection at the latest."""
    outcome: list[VirtioDriver | Exception] = []
    thread = threading.Thread(target=_make, args=(options, relay.path, outcome), daemon=True)
    thread.start()
    try:
        thread.join(HANDSHAKE)
        in_time = not thread.is_alive()
    except BaseException:
        _give_up(thread, relay, outcome)
        raise
    if not in_time:
        _give_up(thread, relay, outcome)
        raise UserError(
            f"{options.socket}: no answer for {HANDSHAKE:.0f} s: does the server serve another "
            "client now?"
        )
    [found] = outcome
    if isinstance(found, VirtioDriver):
        return found
    raise _refused(options, relay, found) from found


def _make(options: BenchOptions, path: str, outcome: list[VirtioDriver | Exception]) -> None:
    try:
        driver = VirtioDriver(
            path,
            depth=options.depth,
            block_size=options.block_size,
            packed=options.packed,
            queues=options.queues,
            queue_size=options.queue_size,
            event_idx=not options.packed,
        )
    except Exception as error:
        outcome.append(error)
    else:
        outcome.append(driver)


def _give_up(
    thread: threading.Thread, relay: Relay, outcome: list[VirtioDriver | Exception]
) -> None:
    relay.close()
    thread.join()
    for late in outcome:
        if isinstance(late, VirtioDriver):
            late.close()


def _refused(options: BenchOptions, relay: Relay, error: Exception) -> Exception:
    """What an error of the handshake means."""
    if not isinstance(error, OSError | RuntimeError):
        return error
    why = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    if relay.is_nbd:
        why = (
            "an NBD server listens there: name a vhost-user socket (vduse blk --vhost-user, an "
            "export of type vhost-user-blk)"
        )
    elif relay.gone:
        why = "the server closed the connection: its log may say why"
    elif "required protocol features" in why:
        why = "the server lacks REPLY_ACK, CONFIG or CONFIGURE_MEM_SLOTS, which are needed here"
    elif "PROTOCOL_FEATURES" in why:
        why = "the server offers no VHOST_USER_F_PROTOCOL_FEATURES, which is needed here"
    elif why.startswith("queues: "):
        why += f" (its virtqueues may be smaller than --queue-size {options.queue_size})"
    return UserError(f"{options.socket}: {why}")
