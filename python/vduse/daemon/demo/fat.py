"""A FAT16 file system over a disk, by pyfatfs: nothing of ours understands the format."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from io import IOBase
from pathlib import Path
from typing import Any, Protocol

from vduse.daemon.errors import UserError

#: pyfatfs keeps the whole allocation table in Python: more would only be slower.
LARGEST = 256 << 20

Progress = Callable[[int, int], None]


class WritableFile(Protocol):
    """What making the file system asks of a disk."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As :meth:`io.IOBase.seek`."""

    def write(self, data: bytes, /) -> int | None:
        """As :meth:`io.RawIOBase.write`."""


def make(disk: WritableFile, size: int, scratch: Path) -> int:
    """Makes a file system at the start of a disk of ``size`` bytes that reads as zeroes; its
    bytes. pyfatfs formats only files of its own: it formats ``scratch``, and what it wrote
    there goes to the disk."""
    pyfat = _pyfatfs("PyFat").PyFat
    size = min(size, LARGEST)
    scratch.touch()
    maker = pyfat()
    maker.mkfs(str(scratch), pyfat.FAT_TYPE_FAT16, size=size, label="VDUSE")
    maker.close()
    for offset, data in _extents(scratch):
        disk.seek(offset)
        disk.write(data)
    scratch.unlink()
    return size


def write_files(disk: IOBase, files: Mapping[str, bytes], progress: Progress) -> None:
    """Writes the files and unmounts, which closes ``disk``."""
    with _pyfatfs("PyFatFS").PyFatBytesIOFS(fp=disk) as fs:
        for number, (path, data) in enumerate(files.items(), 1):
            _make_folders(fs, posixpath.dirname(path))
            with fs.openbin(path, "w") as file:
                file.write(data)
            progress(number, len(files))


def read_files(disk: IOBase, files: Mapping[str, bytes], progress: Progress) -> list[str]:
    """Mounts again and reads every file; the paths of those whose SHA-256 differs. Closes
    ``disk``."""
    wrong = []
    with _pyfatfs("PyFatFS").PyFatBytesIOFS(fp=disk) as fs:
        for number, (path, data) in enumerate(files.items(), 1):
            with fs.openbin(path, "r") as file:
                back = file.read()
            if hashlib.sha256(back).digest() != hashlib.sha256(data).digest():
                wrong.append(path)
            progress(number, len(files))
    return wrong


def _make_folders(fs: Any, path: str) -> None:
    if path and not fs.exists(path):
        _make_folders(fs, posixpath.dirname(path))
        fs.makedir(path)


def _extents(path: Path) -> Iterator[tuple[int, bytes]]:
    """The parts of a sparse file that hold data."""
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        position = 0
        while position < end:
            try:
                position = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                return  # ENXIO: a hole up to the end
            hole = os.lseek(file.fileno(), position, os.SEEK_HOLE)
            yield position, os.pread(file.fileno(), hole - position, position)
            position = hole


def _pyfatfs(module: str) -> Any:
    import importlib
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `fs` imports pkg_resources, which warns
            return importlib.import_module(f"pyfatfs.{module}")
    except ImportError:
        raise UserError("pyfatfs is not installed: pip install 'vduse[demo]'") from None
