"""A disk on a Python file object: here one of fsspec's, which reach S3, SSH, HTTP, archives and
more. ``vduse`` needs no fsspec; this example does."""

import sys
import tempfile

import fsspec

from vduse.backends.python import PythonBackend
from vduse.testing.harness import blk_stack


class FileObject(PythonBackend):
    def __init__(self, url: str, mode: str = "r+b"):
        self.file = fsspec.open(url, mode).open()
        self.size = self.file.seek(0, 2)
        self.read_only = mode == "rb"

    def read(self, offset, buffer):
        self.file.seek(offset)
        if self.file.readinto(buffer) != len(buffer):
            raise OSError("the file is shorter than the disk")

    def write(self, offset, buffer):
        self.file.seek(offset)
        self.file.write(buffer)

    def flush(self):
        self.file.flush()

    def closed(self):
        self.file.close()


if __name__ == "__main__":
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(1 << 20)
        disk = FileObject(sys.argv[1] if len(sys.argv) > 1 else f"file://{image.name}")
        with blk_stack(backend=disk) as stack:
            stack.disk.pwrite(b"kept".ljust(512), 512)
            stack.disk.flush()
        disk.close()
        print(image.read()[512:516].decode())
