"""The guest's initramfs: a static busybox and the modules that mount this machine's root."""

from __future__ import annotations

import lzma
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.kernel.fetch import BedError
from tests.means import SYSTEM_DEPS

#: Modules that mount the root, in this order.
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_DIRECTORIES = ("bin", "dev", "modules", "proc", "sys", "lower", "upper", "new")
_INIT = Path(__file__).parent / "boot" / "init"


def initramfs(
    modules: Path, busybox: Path, load: Sequence[str] = _MODULES, init: Path = _INIT
) -> bytes:
    """The archive: ``init`` is process 1, with busybox and the modules to ``load``, in this order,
    with those that they need. ``modules``: a /lib/modules/RELEASE that depmod indexed.

    Raises:
        BedError: busybox is not static, or a module is compressed in an unknown way.
    """
    archive = Cpio()
    for name in _DIRECTORIES:
        archive.add(name, stat.S_IFDIR | 0o755)
    # Else the kernel gives init no standard output.
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    program = busybox.read_bytes()
    if b"/ld-linux" in program[:4096]:
        raise BedError(f"{busybox} is not static: {SYSTEM_DEPS}")
    archive.add("bin/busybox", stat.S_IFREG | 0o755, program)
    archive.add("init", stat.S_IFREG | 0o755, init.read_bytes())
    for number, path in enumerate(load_order((modules / "modules.dep").read_text(), load)):
        name = f"modules/{number:02}-{Path(path).name.removesuffix('.xz')}"
        archive.add(name, stat.S_IFREG | 0o644, _uncompressed(modules / path))
    return archive.finish()


def load_order(modules_dep: str, names: Sequence[str] = _MODULES) -> list[str]:
    """Paths of the modules to load, what each needs before it. Built-in ones are left out."""
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {Path(path).name.partition(".")[0]: path for path in needs}
    order: list[str] = []

    def load(path: str) -> None:
        for other in needs[path]:
            load(other)
        if path not in order:
            order.append(path)

    for name in names:
        if name in by_name:
            load(by_name[name])
    return order


def _uncompressed(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".ko":
        return path.read_bytes()
    raise BedError(f"{path.name}: compressed in a way that is not known here")


class Cpio:
    """Writes a cpio archive of the kind that Linux unpacks (newc)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entries = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Adds one file, directory or device node, owned by root."""
        self._entries += 1
        self._parts += self._entry(name, mode, data, device)

    def finish(self) -> bytes:
        """The whole archive."""
        return b"".join([*self._parts, *self._entry("TRAILER!!!", 0, b"", (0, 0))])

    def _entry(self, name: str, mode: int, data: bytes, device: tuple[int, int]) -> Iterator[bytes]:
        path = name.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self._entries, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
        for part in (head, data):
            yield part + bytes(-len(part) % 4)
