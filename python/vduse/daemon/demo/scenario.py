"""What the demo does, in order."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import monotonic

from vduse.control.units import format_size
from vduse.daemon.commands import DemoOptions
from vduse.daemon.demo import contents, ext4, fat, images, load
from vduse.daemon.demo.images import Image
from vduse.daemon.demo.progress import Steps
from vduse.daemon.demo.report import Checked, DeviceFacts, Load, Report
from vduse.daemon.demo.stack import Attached, Stack
from vduse.daemon.errors import UserError
from vduse.daemon.table import Context


def run(options: DemoOptions, context: Context) -> Report:
    """UserError for what the person can put right; RuntimeError if contents differ."""
    images.check_size(options.size)
    return _Demo(options, context).run()


class _Demo:
    def __init__(self, options: DemoOptions, context: Context) -> None:
        self._options = options
        self._stopper = context.stopper
        self._steps = Steps(context.err)
        self._files: Mapping[str, bytes] = contents.files()
        self._checked: list[Checked] = []
        self._left_out: list[str] = []
        self._loads: list[Load] = []
        self._devices: list[DeviceFacts] = []

    def run(self) -> Report:
        begin = monotonic()
        keep = self._options.keep
        with self._stopper.held(), ExitStack() as clean_up:
            scratch = Path(tempfile.mkdtemp(prefix="vduse-demo-"))
            clean_up.callback(shutil.rmtree, scratch)
            named = self._options.image
            if named == "":
                raise UserError("the image has no name: name a file, or leave it out")
            path = Path(named) if named is not None else scratch / "demo.img"
            image = images.prepare(path, self._options.size)
            if image.made:
                clean_up.callback(path.unlink, missing_ok=True)
            with closing(Stack(self._options)) as stack:
                self._scenes(stack, image, scratch)
            kept = [str(path)] if keep and image.made else []
            kept += [str(p) for p in scratch.iterdir() if keep and str(p) not in kept]
            if keep:  # only here: what a failure leaves behind is of no use
                clean_up.pop_all()
                if not any(scratch.iterdir()):
                    scratch.rmdir()
        return Report(
            checked=tuple(self._checked),
            left_out=tuple(self._left_out),
            loads=tuple(self._loads),
            devices=tuple(self._devices),
            kept=tuple(kept),
            seconds=monotonic() - begin,
        )

    def _scenes(self, stack: Stack, image: Image, scratch: Path) -> None:
        if not image.blank:
            self._tour(stack, image)
            return
        if self._options.read_only:
            self._fat_read_only(stack, image, scratch)
        else:
            self._fat(stack, image, scratch)
        self._ext4(stack, scratch)

    # --- what is shown ----------------------------------------------------------------------

    def _fat(self, stack: Stack, image: Image, scratch: Path) -> None:
        """Loads, then a FAT file system made, filled and read through the disk."""
        with (
            self._attached(stack, "demo", image.path) as attached,
            self._stopper.released(),
        ):
            self._load(attached, write=True)
            with self._steps.step("clear the disk"):
                attached.clear()
            with self._steps.step("make a FAT file system"), attached.file() as disk:
                size = fat.make(disk, image.size, scratch / "format")
            with self._steps.step("write files to it") as advance:
                fat.write_files(attached.file(), self._files, advance)
            attached.disk.flush()
            with self._steps.step("read them back") as advance:
                wrong = fat.read_files(attached.file(), self._files, advance)
            self._same(wrong, "the disk")
        with self._stopper.released():
            with self._steps.step("read them from the image file itself") as advance:
                wrong = fat.read_files(image.path.open("rb"), self._files, advance)
            self._same(wrong, "the image file")
        self._add("FAT16 file system", size, "SHA-256 equal through the disk and in the image")

    def _fat_read_only(self, stack: Stack, image: Image, scratch: Path) -> None:
        """A FAT file system made in the image file, and read through a read-only disk."""
        with self._stopper.released(), self._steps.step("make and fill a FAT image") as advance:
            with image.path.open("r+b") as file:
                size = fat.make(file, image.size, scratch / "format")
            fat.write_files(image.path.open("r+b"), self._files, advance)
        with (
            self._attached(stack, "demo", image.path, read_only=True) as attached,
            self._stopper.released(),
        ):
            with self._steps.step("read the files") as advance:
                wrong = fat.read_files(attached.file(), self._files, advance)
            self._same(wrong, "the disk")
            self._refuses_writes(attached)
            self._load(attached, write=False)
        self._add("FAT16 file system", size, "SHA-256 equal; a write is refused")

    def _tour(self, stack: Stack, image: Image) -> None:
        """Somebody's image: read through a read-only disk, and compared with the file."""
        size = min(image.size, self._options.size)
        with (
            self._attached(stack, "demo", image.path, read_only=True) as attached,
            self._stopper.released(),
        ):
            with self._steps.step("read it through the disk, MiB") as advance:
                through = ext4.digest(attached.disk, size, advance)
            with self._steps.step("read the image itself"):
                direct = _file_digest(image.path, size)
            self._same([] if through == direct else [str(image.path)], "the disk")
            self._refuses_writes(attached)
            self._load(attached, write=False)
        first = "" if size == image.size else f" (its first {format_size(size)})"
        self._checked.append(
            Checked(
                what=f"contents of {image.path}{first}",
                size=image.size,
                files=0,
                bytes=size,
                checked="SHA-256 equal; a write is refused",
            )
        )
        self._left_out.append("file systems: the image has contents, so it is only read")

    def _ext4(self, stack: Stack, scratch: Path) -> None:
        """An ext4 image written through a second device, read back whole, and checked."""
        if not ext4.tools():
            self._left_out.append("ext4 image: e2fsprogs is not installed (make system-deps)")
            return
        source, target = scratch / "ext4-made.img", scratch / "ext4.img"
        with self._stopper.released(), self._steps.step("make an ext4 image (mke2fs -d)"):
            ext4.make(source, self._files, scratch / "files")
        images.prepare(target, ext4.SIZE)
        with self._attached(stack, "ext4", target) as attached, self._stopper.released():
            with self._steps.step("write it through the disk, MiB") as advance:
                ext4.write(attached.disk, source, advance)
            with self._steps.step("read it back, MiB") as advance:
                through = ext4.digest(attached.disk, ext4.SIZE, advance)
            same = through == _file_digest(source, ext4.SIZE)
            self._same([] if same else [str(target)], "the disk")
        source.unlink()
        with self._stopper.released(), self._steps.step("e2fsck"):
            ext4.check(target)
        self._add("ext4 file system", ext4.SIZE, "image SHA-256 equal, e2fsck finds it clean")

    # --- steps ------------------------------------------------------------------------------

    @contextmanager
    def _attached(
        self, stack: Stack, name: str, image: Path, *, read_only: bool = False
    ) -> Iterator[Attached]:
        with stack.attach(name, image, read_only=read_only) as attached:
            yield attached
        assert attached.facts is not None
        self._devices.append(attached.facts)

    def _load(self, attached: Attached, *, write: bool) -> None:
        with self._steps.step("load generator") as advance:
            for done in load.loads(attached.driver, write=write):
                self._loads.append(done)
                advance(len(self._loads), len(load.LOADS))

    def _refuses_writes(self, attached: Attached) -> None:
        try:
            attached.disk.pwrite(bytes(images.SECTOR), 0)
        except OSError as error:
            if error.errno == errno.EROFS:
                return
            raise
        raise RuntimeError("a read-only disk took a write")

    def _add(self, what: str, size: int, checked: str) -> None:
        total = sum(map(len, self._files.values()))
        self._checked.append(Checked(what, size, len(self._files), total, checked))

    def _same(self, wrong: list[str], where: str) -> None:
        if wrong:
            raise RuntimeError(f"read from {where}, these differ: {', '.join(wrong)}")


def _file_digest(path: Path, size: int) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while size and (data := file.read(min(size, 1 << 20))):
            total.update(data)
            size -= len(data)
    return total.hexdigest()
