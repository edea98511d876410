"""A QEMU that has vhost-vdpa devices: the installed one, or the one of Debian's backports."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.fetch import Apt, BedError, codename, fetched, need, unpack
from tests.means import find_program

_DEVICE = "vhost-vdpa-device-pci"
#: Debian's packages of the two programs that are used here.
_PACKAGES = ("qemu-system-x86", "qemu-utils")
#: Its drivers for remote storage.
_BLOCK_DRIVERS = "qemu-block-extra"


@dataclass(frozen=True)
class Qemu:
    """An installed QEMU (``root`` is /), or one that was unpacked."""

    root: Path

    @property
    def libraries(self) -> Path:
        """Its own, and below them its modules."""
        return self.root / "usr/lib/x86_64-linux-gnu"

    def command(self, program: str) -> list[str]:
        """How to start ``qemu-system-x86_64`` or ``qemu-storage-daemon``."""
        modules = f"QEMU_MODULE_DIR={self.libraries / 'qemu'}"
        words = [
            "env",
            f"LD_LIBRARY_PATH={self.libraries}",
            modules,
            str(self.root / "usr/bin" / program),
        ]
        if program.startswith("qemu-system"):
            for folder in ("seabios", "qemu"):
                words += ["-L", str(self.root / "usr/share" / folder)]
        return words


def newest_qemu() -> Qemu:
    """The installed one where it will do; else the newest one for this release, fetched if the
    cache has none.

    Raises:
        BedError: it cannot be had here.
    """
    installed = Qemu(Path("/"))
    if all(map(find_program, ("qemu-system-x86_64", "qemu-storage-daemon"))) and _serves(installed):
        return installed
    qemu = Qemu(fetched("qemu", lambda folder: _fetch(folder, _PACKAGES)))
    if not _serves(qemu):
        raise BedError(f"{qemu.root}: this QEMU has no {_DEVICE}")
    return qemu


def qemu_with_rbd() -> Qemu:
    """As :func:`newest_qemu`, and it has the driver for Ceph's images. BedError."""
    qemu = newest_qemu()
    if (qemu.libraries / "qemu" / "block-rbd.so").exists():
        return qemu
    packages = (*_PACKAGES, _BLOCK_DRIVERS)
    return Qemu(fetched("qemu-with-rbd", lambda folder: _fetch(folder, packages)))


def _serves(qemu: Qemu) -> bool:
    asked = subprocess.run(
        [*qemu.command("qemu-system-x86_64"), "-device", f"{_DEVICE},help"],
        capture_output=True,
        text=True,
    )
    return f"{_DEVICE} options" in asked.stdout


def _fetch(folder: Path, packages: Sequence[str]) -> Path:
    """Gets and unpacks what would have to be installed; returns its root."""
    need()
    backports = f"{codename()}-backports"
    apt = Apt(folder, (codename(), backports), status=Path("/var/lib/dpkg/status"))
    install = ("-qq", "--download-only", "--no-install-recommends", "-t", backports, "install")
    apt.run("apt-get", *install, *packages)
    return unpack(folder / "archives", folder / "root")
