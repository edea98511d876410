"""Many calls at once, and ends in the midst of them."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
from contextlib import suppress

from tests.system.villains.base import (
    CONFIG,
    NAME,
    QUEUES,
    create,
    ioctl,
    open_control,
    open_node,
    outcome,
    raw_ioctl,
    say,
    villain,
)
from vduse.control.abi import (
    Ioctl,
    VqConfig,
    VqInfo,
    pack_name,
)


def _work_for_ever(report: int) -> None:
    """Ioctls and opens on several threads; a byte for each."""

    def work() -> None:
        while True:
            with suppress(OSError):
                control = open_control()
                with suppress(OSError):
                    ioctl(control, Ioctl.CREATE_DEV, CONFIG.pack())
                os.close(control)
                node = open_node()
                for index in range(QUEUES):
                    ioctl(node, Ioctl.VQ_SETUP, VqConfig(index, 64).pack())
                    ioctl(node, Ioctl.VQ_GET_INFO, VqInfo(index).pack())
                os.close(node)
            os.write(report, b".")

    for _ in range(3):
        threading.Thread(target=work).start()
    work()


@villain
def killed_in_mid_ioctl() -> None:
    """Children that are killed while their threads call."""
    source = random.Random(2)
    for _ in range(20):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _work_for_ever(writer)
        os.close(writer)
        for _ in range(source.randrange(1, 60)):
            os.read(reader, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
    say(outcome(open_node))


@villain
def exits_in_mid_ioctl() -> None:
    """The whole program ends while its threads call."""
    reader, writer = os.pipe()
    threading.Thread(target=_work_for_ever, args=(writer,), daemon=True).start()
    for _ in range(20):
        os.read(reader, 1)
    say("done")
    os._exit(3)


@villain
def threads_at_once() -> None:
    """Every thread gets its own answers."""
    node = create()
    wrong: list[object] = []

    def work(number: int) -> None:
        index = number % QUEUES
        control = open_control()
        for _ in range(50):
            info = VqInfo.unpack(ioctl(node, Ioctl.VQ_GET_INFO, VqInfo(index).pack()))
            if info.index != index:
                wrong.append(info)
            told = outcome(ioctl, control, Ioctl.DESTROY_DEV, pack_name(f"no{number}"))
            if told != "EINVAL":
                wrong.append(told)
        os.close(control)

    running = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    say(*wrong)


@villain
def interrupted() -> None:
    """Signals all the time: what a call says to have done, it has."""
    control = open_control()
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    caller = threading.get_ident()

    over = threading.Event()

    def interrupt() -> None:
        for _ in range(100_000):  # an end, where nothing else comes to one for all the signals
            if over.is_set():
                return
            signal.pthread_kill(caller, signal.SIGUSR1)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    found = set()
    created = ctypes.create_string_buffer(CONFIG.pack())
    name = ctypes.create_string_buffer(pack_name(NAME))
    for _ in range(100):
        for nr, argument in ((Ioctl.CREATE_DEV, created), (Ioctl.DESTROY_DEV, name)):
            told = "EINTR"
            while told == "EINTR":
                told = outcome(raw_ioctl, control, nr, ctypes.addressof(argument))
            found.add(told)
    over.set()
    interrupting.join()
    say(*found)


@villain
def opens_and_closes() -> None:
    """A node that was closed opens again at once, however often."""
    os.close(create())
    found = set()
    for _ in range(300):
        for opened in (open_node, open_control):
            with suppress(OSError):
                os.close(opened())
                continue
            found.add(outcome(opened))
    say(*found)
