"""A RAM disk, and a program that uses it."""

from vduse.backends.python import PythonBackend
from vduse.testing.harness import blk_stack


class RamDisk(PythonBackend):
    def __init__(self, size):
        self.size = size
        self.data = memoryview(bytearray(size))

    def read(self, offset, buffer):
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, offset, buffer):
        self.data[offset : offset + len(buffer)] = buffer


if __name__ == "__main__":
    ram = RamDisk(64 << 20)
    with blk_stack(backend=ram) as stack:
        stack.disk.pwrite(b"hello".ljust(512), 4096)
        print(stack.disk.pread(512, 4096).decode().rstrip())
    ram.close()
