"""Processes for device programs and drivers: calls on an object of theirs go over a socket, as
pickles and fds.

They are forked from one that has imported everything and has no threads, the *nursery*. A call is
``(object, method, *arguments)``, its answer the result or the exception. Connections are served by
a thread each, so that one may wait for messages while another makes ioctls.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from tests.contract.embedded_program import EmbeddedProgram
from tests.contract.kernel_program import KernelProgram
from tests.contract.local_program import LocalMemory, LocalNode
from tests.contract.vhost_opener import VhostOpener

_MAX_PACKET = 1 << 17
#: Where the interpreter of a nursery finds this module.
TREE = Path(__file__).parents[2]
#: What it runs: :func:`nursery` on the socket that is its standard input.
COMMAND = f"import {__name__} as m; m.nursery()"
#: The object that a child begins with.
ROOT = 0


@dataclass(frozen=True)
class Fd:
    """An fd in a call or an answer; on the way, its place among the packet's fds."""

    number: int


@dataclass(frozen=True)
class Kept:
    """A result that stays in the child, by number."""

    number: int


#: Methods that keep the fds they get.
_TAKES_OVER = {"open_with"}
#: Results that are or contain fds.
_FD_RESULTS: dict[str, Callable[[Any], Any]] = {
    "channel.iotlb_get_fd": lambda result: (result[0], Fd(result[1])),
    "channel.vq_get_callfd": Fd,
    "channel.vq_get_kickfd": lambda result: result if result is None else Fd(result),
    "channel.get_inflight_fd": Fd,
}


def send(sock: socket.socket, values: tuple[Any, ...]) -> list[int]:
    """Sends; the fds that went along."""
    fds = [value.number for value in values if isinstance(value, Fd)]
    places = iter(range(len(fds)))
    values = tuple(Fd(next(places)) if isinstance(value, Fd) else value for value in values)
    socket.send_fds(sock, [pickle.dumps(values)], fds)
    return fds


def receive(sock: socket.socket) -> tuple[tuple[Any, ...], list[int]] | None:
    """The values, fds as their numbers, and the fds; None: the other end is gone."""
    data, fds, _, _ = socket.recv_fds(sock, _MAX_PACKET, 4, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    values: tuple[Any, ...] = pickle.loads(data)
    placed = (fds[value.number] if isinstance(value, Fd) else value for value in values)
    return tuple(placed), fds


# --- in the child --------------------------------------------------------------------------


class _Server:
    def __init__(self, root: object) -> None:
        self._kept: dict[int, Any] = {ROOT: root}

    def serve(self, sock: socket.socket) -> None:
        """Until the other end is gone."""
        with sock:
            while (call := receive(sock)) is not None:
                (target, method, *arguments), fds = call
                if method == "connect":
                    self._connect(arguments[0])
                    send(sock, (True, None))
                    continue
                self._answer(sock, target, method, arguments)
                if method not in _TAKES_OVER:
                    for fd in fds:
                        os.close(fd)

    def _connect(self, fd: int) -> None:
        threading.Thread(target=self.serve, args=(socket.socket(fileno=fd),), daemon=True).start()

    def _answer(self, sock: socket.socket, target: int, method: str, arguments: list[Any]) -> None:
        try:
            result = attrgetter(method)(self._kept[target])(*arguments)
        except Exception as error:
            send(sock, (False, error))
            return
        if isinstance(result, LocalNode | LocalMemory):
            number = len(self._kept)
            self._kept[number] = result
            result = Kept(number)
        result = _FD_RESULTS.get(method, lambda plain: plain)(result)
        parts = result if isinstance(result, tuple) else (result,)
        for fd in send(sock, (True, *parts)):
            os.close(fd)


def _become(user: int) -> None:
    if user and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _run_program(records: str) -> object:
    from tests.contract.run_program import RunProgram  # much that the others do not need

    return RunProgram(records)


#: What a child may be.
_KINDS: dict[str, Callable[[Any], object]] = {
    "embedded": EmbeddedProgram,
    "kernel": lambda _: KernelProgram(),
    "run": _run_program,
    "vhost": lambda _: VhostOpener(),
}


def nursery() -> None:
    """Forks a child for each order that comes over the socket at standard input: what it is, what
    it is made of (an embedded program's control socket), a user id, the socket of its calls.
    Answers with the process number."""
    orders = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (order := receive(orders)) is not None:
        (kind, argument, user, calls), fds = order
        pid = os.fork()
        if pid == 0:
            orders.close()
            _become(user)
            _Server(_KINDS[kind](argument)).serve(socket.socket(fileno=calls))
            os._exit(0)
        for fd in fds:
            os.close(fd)
        send(orders, (pid,))
