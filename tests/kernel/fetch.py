"""Debian's packages, by name through apt, unpacked into the checkout's cache: the kernels.

Nothing is installed and no root is needed: apt keeps its state in the cache too.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.kernel.apt import AptError, debian_archive, read_sources, sources_for
from tests.means import find_program

CACHE = Path(__file__).parents[2] / ".cache" / "kernels"
#: Packages of one kernel: the image; from 7.2 on it is in two others.
_STEMS = ("image", "binary", "modules")
#: Bytes that fetching takes for a while: the packages, their contents and apt's lists.
_SPACE = 400 << 20


@dataclass(frozen=True)
class Wanted:
    """Which of Debian's kernels of one version are tested.

    ``suites``: the first one that has any is taken; sid moves on to the next version.
    ``oldest``: number of the first stable release that keeps all of docs/kernel-behaviour.md.
    """

    suites: tuple[str, ...]
    oldest: int = 0


#: The kernels that are tested, by version.
KERNELS = {
    "6.12": Wanted(("trixie",), 114),
    "7.2": Wanted(("sid", "forky", "trixie-backports")),
}


class BedError(Exception):
    """The test bed cannot run here; one line that says what to do."""


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel: ``root`` holds the packages' files."""

    root: Path

    @property
    def modules(self) -> Path:
        """The directory for /lib/modules/RELEASE, indexed."""
        [modules] = (self.root / "usr/lib/modules").iterdir()
        return modules

    @property
    def image(self) -> Path:
        """The kernel's bzImage."""
        old, new = self.root / "boot" / f"vmlinuz-{self.modules.name}", self.modules / "vmlinuz"
        return old if old.exists() else new


def kernel(version: str) -> Kernel:
    """The newest kernel ``version`` (of ``KERNELS``), fetched if the cache has none that is wanted.

    Raises:
        BedError: it cannot be had here.
    """
    if platform.machine() != "x86_64":
        raise BedError(f"kernels are fetched for x86_64 only, this is {platform.machine()}")
    wanted = KERNELS[version]
    place = f"{version}.{wanted.oldest}+"
    return Kernel(fetched(place, lambda folder: _fetch(version, wanted, folder)))


def fetched(name: str, fetch: Callable[[Path], Path]) -> Path:
    """What the cache has by a name; else what ``fetch`` makes in the folder that it is given.

    Raises:
        BedError: of ``fetch``, or there is too little space for it.
    """
    place = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / "lock"):
        if not place.is_dir():
            free = shutil.disk_usage(CACHE).free
            if free < _SPACE:
                raise BedError(f"{CACHE}: {free >> 20} MiB free, {_SPACE >> 20} MiB needed")
            with TemporaryDirectory(dir=CACHE, prefix="fetch-") as folder:
                fetch(Path(folder)).rename(place)
    return place


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two test runs in one checkout fetch once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def newest(names: list[str], version: str, oldest: int) -> str | None:
    """Release (``6.12.117+deb13-amd64``) of the newest plain ``linux-image`` of a version.

    ``oldest``: as in ``Wanted``. None: no package has such a name.
    """
    pattern = re.compile(rf"linux-image-({re.escape(version)}\.(\d+)[^-]*-amd64)")
    found = [match for name in names if (match := pattern.fullmatch(name))]
    releases = [match[1] for match in found if int(match[2]) >= oldest]
    return max(releases, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], default=None)


def _fetch(version: str, wanted: Wanted, folder: Path) -> Path:
    """Gets and unpacks the packages in ``folder``; returns their root."""
    need("apt-cache", "depmod")
    for suite in wanted.suites:
        packages = folder / suite
        packages.mkdir()
        apt = Apt(packages, (suite,))
        names = apt.run("apt-cache", "pkgnames", "linux-").split()
        release = newest(names, version, wanted.oldest)
        if release is not None:
            break
    else:
        place = " or ".join(wanted.suites)
        raise BedError(f"apt has no linux-image-{version}.{wanted.oldest} or newer in {place}")
    parts = [name for stem in _STEMS if (name := f"linux-{stem}-{release}") in names]
    apt.run("apt-get", "-qq", "download", *parts)
    root = unpack(packages, folder / "root")
    # Where depmod looks depends on how it was built: in lib/modules or in usr/lib/modules.
    (root / "lib").symlink_to("usr/lib")
    _run(find_program("depmod") or "depmod", "-b", str(root), release)
    return root


def need(*programs: str) -> None:
    """BedError where one of the ``programs`` is missing, or one that everything here takes."""
    for program in ("apt-get", "dpkg-deb", *programs):
        if find_program(program) is None:
            raise BedError(f"needs {program}: what the bed runs comes as Debian packages, by apt")


def unpack(folder: Path, root: Path) -> Path:
    """Unpacks the packages in ``folder`` below ``root``, and returns that."""
    for package in sorted(folder.glob("*.deb")):
        _run("dpkg-deb", "-x", str(package), str(root))
    return root


class Apt:
    """apt with this machine's configuration, but its own sources, lists and packages.

    ``suites``: of Debian. ``status``: dpkg's list of what is installed; nothing is, if None.
    """

    def __init__(self, folder: Path, suites: Sequence[str], status: Path | None = None) -> None:
        self._folder = folder
        try:
            archive = debian_archive(read_sources(Path("/etc/apt")), codename())
        except AptError as why:
            raise BedError(str(why)) from None
        sources = folder / "debian.sources"
        sources.write_text(sources_for(archive, " ".join(suites)))
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "archives" / "partial").mkdir(parents=True)
        (folder / "status").touch()
        settings = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": folder,
            "Dir::State::Lists": folder / "lists",
            "Dir::State::Status": status or folder / "status",
            "Dir::Cache": folder,
            "APT::Update::Error-Mode": "any",
            # The cache may lie where apt's own user cannot go.
            "APT::Sandbox::User": "root",
        }
        self._options = [
            word for pair in settings.items() for word in ("-o", "{}={}".format(*pair))
        ]
        self.run("apt-get", "-qq", "update")

    def run(self, program: str, *args: str) -> str:
        """Runs an apt program in the folder; returns what it printed."""
        return _run(program, *self._options, *args, folder=self._folder)


def codename() -> str:
    """This machine's Debian release."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")


def _run(*argv: str, folder: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True
    )
    if done.returncode:
        log = CACHE / "log"
        log.write_text(f"{shlex.join(argv)}\n{done.stdout}{done.stderr}")
        raise BedError(f"{Path(argv[0]).name} failed, see {log}: no network, or an old mirror?")
    return done.stdout
