"""Writes and reads that are checked against what was written."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from vduse.bus.disk import Disk

_BLOCK = 4096


class Verified:
    """Threads that write blocks of a disk, each in an area of its own, and read them back, until
    the end of the ``with``. There all that was written is read once more. What they find wrong is
    raised there, and by :meth:`go_on`."""

    def __init__(self, disk: Disk, threads: int = 1, *, blocks: int = 256) -> None:
        """``blocks``: of 4 KiB, in each area; they are zeroes. The areas begin where the disk
        does."""
        changed = self._changed = threading.Condition()
        self._writers = [_Writer(disk, area, blocks, changed) for area in range(threads)]

    def go_on(self, more: int = 20) -> None:
        """Waits until each thread has written and read ``more`` blocks from now on."""
        with self._changed:
            goals = [(writer, writer.done + more) for writer in self._writers]
            self._changed.wait_for(
                lambda: self._failure or all(writer.done >= goal for writer, goal in goals)
            )
        self._raise()

    def check_file(self, image: Path) -> None:
        """The file has what was written to the disk."""
        with image.open("rb") as file:
            for writer in self._writers:
                file.seek(writer.offset)
                assert file.read(len(writer.held) * _BLOCK) == b"".join(writer.held)

    def __enter__(self) -> Self:
        for writer in self._writers:
            writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers:
            writer.ends.set()
        # After another failure they end with their disk.
        if error is None:
            for writer in self._writers:
                writer.join()
            self._raise()
            for writer in self._writers:
                writer.check()

    @property
    def _failure(self) -> BaseException | None:
        return next((writer.failure for writer in self._writers if writer.failure), None)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure


class _Writer(threading.Thread):
    def __init__(self, disk: Disk, area: int, blocks: int, changed: threading.Condition) -> None:
        """``changed`` is notified of rounds and of a failure."""
        super().__init__(name=f"verified-{area}")
        self._disk = disk
        self._changed = changed
        self._random = random.Random(area)
        self.ends = threading.Event()
        #: Bytes from the disk's start.
        self.offset = area * blocks * _BLOCK
        #: What its blocks have.
        self.held = [bytes(_BLOCK)] * blocks
        #: Rounds.
        self.done = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ends.is_set():
                self._round()
                with self._changed:
                    self.done += 1
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self.failure = error
                self._changed.notify_all()

    def check(self) -> None:
        """Reads all its blocks."""
        for block in range(len(self.held)):
            self._check(block)

    def _round(self) -> None:
        block = self._random.randrange(len(self.held))
        data = self._random.randbytes(_BLOCK)
        self._disk.pwrite(data, self.offset + block * _BLOCK)
        self.held[block] = data
        self._check(self._random.randrange(len(self.held)))

    def _check(self, block: int) -> None:
        read = self._disk.pread(_BLOCK, self.offset + block * _BLOCK)
        assert read == self.held[block], f"{self.name}: block {block}"
