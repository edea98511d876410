"""A disk that makes its contents up: every 8 bytes say where they are. Nothing is stored."""

import errno
import struct

from vduse.backends.python import PythonBackend
from vduse.testing.harness import blk_stack


class MadeUp(PythonBackend):
    read_only = True

    def __init__(self, size=1 << 40):
        self.size = size

    def submit(self, batch):
        for request in batch:
            if request.op == "read":
                places = range(request.offset, request.offset + request.length, 8)
                struct.pack_into(f"<{len(places)}Q", request.buffer, 0, *places)
                request.complete()
            elif request.op == "flush":
                request.complete()
            else:
                request.complete(errno.EROFS)


if __name__ == "__main__":
    disk = MadeUp()
    with blk_stack(backend=disk) as stack:
        print(struct.unpack("<2Q", stack.disk.pread(512, 1 << 39)[:16]))
    disk.close()
