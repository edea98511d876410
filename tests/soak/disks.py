"""The disks of a soak: each with a backend, layers and troubles of its own, under a thread that
loads it and checks what it reads."""

from __future__ import annotations

import os
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak.client import visit
from tests.soak.model import Model
from vduse.backends.layers import Faults
from vduse.backends.python import PythonBackend
from vduse.bus.disk import SECTOR_SIZE
from vduse.exports.nbd import NbdServer
from vduse.testing.bench import Bench
from vduse.testing.harness import BlkStack
from vduse.testing.rawdriver import S_OK, T_IN, RawDriver

SIZE = 4 << 20
_LONGEST = 64 << 10


class Soaked(ABC):
    """A disk, what it must hold, and what happens to it. One thread at a time."""

    #: Whether reads say something about writes.
    verified = True

    def __init__(self, bench: Bench, folder: Path, name: str, seed: str) -> None:
        self.rng = random.Random(seed)
        self.faults = Faults(seed=self.rng.getrandbits(64))
        self.folder = folder
        self.name = name
        self.counts: dict[str, int] = {}
        self.model = Model(SIZE)
        self.stack = self.make(bench)

    @abstractmethod
    def make(self, bench: Bench) -> BlkStack:
        """The device."""

    def troubles(self) -> list[Callable[[], None]]:
        """What may happen to it between two batches."""
        return [self.rebind, self.look_by_vhost, self.serve_nbd, self.fail_for_a_while]

    def round(self) -> None:
        """Some batches, one trouble. AssertionError: data is not what was written."""
        for _ in range(self.rng.randrange(1, 5)):
            self.batch()
        trouble = self.rng.choice(self.troubles())
        trouble()
        self.counts[trouble.__name__] = self.counts.get(trouble.__name__, 0) + 1

    def batch(self, during: Callable[[], None] | None = None) -> None:
        """Requests in flight together, on ranges apart; ``during`` happens meanwhile."""
        disk = self.stack.disk
        length = SECTOR_SIZE << self.rng.randrange(8)
        spans = self.rng.sample(range(disk.size // _LONGEST), 16)
        batch: list[tuple[str, int, Any]] = []
        for span in spans:
            op = self.rng.choice(["read", "read", "write", "write", "discard", "write_zeroes"])
            data = {"read": bytearray(length), "write": self.rng.randbytes(length)}
            batch.append((op, span * _LONGEST, data.get(op, length)))
        batch.append(("flush", 0, 0))
        requests = dict(zip(disk.submit(batch), batch, strict=True))
        if during is not None:
            during()
        while requests:
            for token, result in disk.reap():
                self._ended(*requests.pop(token), result)
        self.counts["requests"] = self.counts.get("requests", 0) + len(batch)

    def _ended(self, op: str, offset: int, data: Any, result: int) -> None:
        if op == "write":
            self.model.written(offset, data, result)
        elif op == "write_zeroes":
            self.model.written(offset, bytes(data), result)
        elif op == "discard":
            self.model.forget(offset, data)
        elif op == "read" and result >= 0 and self.verified:
            self.model.check(self.name, offset, bytes(data))

    def rest(self) -> None:
        """Bounce pages that nobody uses are given back: how many were in use at once is luck."""
        self.stack.vdpa.domain.reclaim()

    # --- troubles -----------------------------------------------------------------------------

    def rebind(self) -> None:
        """The driver goes, with requests in flight, and comes back."""
        bus = self.stack.framework.bus
        self.batch(lambda: bus.unbind(self.name)) if self.rng.random() < 0.5 else None
        bus.bind(self.name, "virtio_vdpa")

    def look_by_vhost(self) -> None:
        """Another driver for one request, which leaves by a reset."""
        bus = self.stack.framework.bus
        bus.bind(self.name, "vhost_vdpa")
        driver = bus.vhost(self.name).open()
        try:
            with RawDriver(driver) as raw:
                assert raw.start()
                status, data, _ = raw.request(T_IN, 0, room=512)
                if status == S_OK and self.verified:
                    self.model.check(self.name, 0, data)
        finally:
            driver.close()
        bus.bind(self.name, "virtio_vdpa")

    def serve_nbd(self) -> None:
        """An export, and clients that come and go, good ones and bad ones."""
        with NbdServer(self.stack.disk, self.folder / f"{self.name}.sock") as server:
            clients = [
                threading.Thread(target=visit, args=(server.path, random.Random(self.rng.random())))
                for _ in range(4)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()

    def fail_for_a_while(self) -> None:
        """Some requests of two batches fail."""
        self.faults.add(rate=0.2)
        self.batch()
        self.batch()
        self.faults.clear()


class Null(Soaked):
    """No bytes behind it."""

    verified = False

    def make(self, bench: Bench) -> BlkStack:
        return bench.device(
            "null", name=self.name, size=SIZE, queues=2, packed=True, faults=self.faults
        )


class Memory(Soaked):
    """In memory, and slow now and then."""

    def make(self, bench: Bench) -> BlkStack:
        slow = f"delay,all=0ms..2ms,seed={self.rng.getrandbits(32)}"
        return bench.device(
            "memory", name=self.name, size=SIZE, layers=[slow], queues=2, faults=self.faults
        )


class Image(Soaked):
    """On a file, whose size changes."""

    def make(self, bench: Bench) -> BlkStack:
        self.image = self.folder / f"{self.name}.img"
        self.image.write_bytes(bytes(SIZE))
        return bench.device(str(self.image), name=self.name, faults=self.faults)

    def troubles(self) -> list[Callable[[], None]]:
        return [*super().troubles(), self.resize]

    def resize(self) -> None:
        """Shorter or longer; the driver hears of it."""
        size = self.rng.randrange(SIZE // 2, SIZE) // _LONGEST * _LONGEST
        os.truncate(self.image, size)
        assert self.stack.blk.resize() == size
        while self.stack.disk.size != size:  # the config interrupt is on its way
            self.stack.disk.flush()
        self.model.resize(size)


class Killed(Image):
    """In a program of its own, which dies."""

    def make(self, bench: Bench) -> BlkStack:
        self.image = self.folder / f"{self.name}.img"
        self.image.write_bytes(bytes(SIZE))
        return bench.device(str(self.image), name=self.name, where="child", packed=True)

    def troubles(self) -> list[Callable[[], None]]:
        return [self.rebind, self.look_by_vhost, self.serve_nbd, self.die]

    def die(self) -> None:
        """With requests in flight, which its successor ends."""

        def replaced() -> None:
            self.stack.kill_device()
            self.stack.replace_device()

        self.batch(replaced)


class Ram(PythonBackend):
    """The backend of :class:`Python`."""

    size = SIZE

    def __init__(self) -> None:
        self.data = bytearray(SIZE)

    def read(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, offset: int, buffer: memoryview) -> None:
        self.data[offset : offset + len(buffer)] = buffer


class Python(Soaked):
    """In Python."""

    def make(self, bench: Bench) -> BlkStack:
        return bench.device(Ram(), name=self.name, packed=True, faults=self.faults)


KINDS: tuple[type[Soaked], ...] = (Null, Memory, Image, Killed, Python)
