"""A program that writes to a qcow2 image until it is killed, and prints what it was promised.

Arguments: the image, and the first sequence number. Every block of 4 KiB that it writes is full of
its own number and the write's. A line on its output follows a flush: ``BLOCK:SEQUENCE`` for each
block written before that."""

from __future__ import annotations

import os
import random
import sys
import threading
from itertools import count

from vduse.bus.disk import Disk
from vduse.testing.harness import blk_stack

BLOCK = 4096
THREADS = 8
#: Writes before each flush.
WRITES = 12


def content(block: int, sequence: int) -> bytes:
    """Of a block."""
    return (block.to_bytes(8, "little") + sequence.to_bytes(8, "little")) * (BLOCK // 16)


def write(disk: Disk, thread: int, first: int) -> None:
    """Blocks of one thread's own, for ever."""
    choose = random.Random(f"{first}/{thread}")
    blocks = range(thread, disk.size // BLOCK, THREADS)
    sequences = count(first)
    while True:
        written = {}
        for sequence in (next(sequences) for _ in range(WRITES)):
            block = choose.choice(blocks)
            disk.pwrite(content(block, sequence), block * BLOCK)
            written[block] = sequence
        disk.flush()
        line = " ".join(f"{block}:{sequence}" for block, sequence in written.items())
        os.write(1, f"{line}\n".encode())


def main() -> None:
    path, first = sys.argv[1], int(sys.argv[2])
    with blk_stack(backend=f"qcow2:{path}", queues=2) as stack:
        threads = [
            threading.Thread(target=write, args=(stack.disk, thread, first))
            for thread in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
