"""`vduse` as an ordinary user without capabilities, wherever checkout and Python lie: where that
user may not go to them (/root), the command sees others in place of those folders."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.rules.tree import ROOT
from vduse.testing.run import VDUSE

#: nobody and nogroup.
NOBODY = 65534
#: setpriv(1): no user, group or capability of root's is left.
_DROP = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all"),
]


@contextmanager
def as_nobody() -> Iterator[Sequence[str]]:
    """The command, for a child of this process, which is root's or an ordinary user's already."""
    if os.geteuid() != 0:
        yield VDUSE
        return
    needed = {ROOT, *(Path(path).resolve() for path in (sys.prefix, sys.base_prefix))}
    closed = {folder for path in needed if (folder := _closed(path)) is not None}
    with TemporaryDirectory(prefix="vduse-mounts-") as place:
        script = "\n".join(
            ["set -e", *(line for folder in closed for line in _open(folder, needed, place))]
        )
        command = shlex.join([*_DROP, *VDUSE])
        # Mounts are the command's own; nothing here is another process in the end.
        yield ("unshare", "--mount", "sh", "-c", f'{script}\nexec {command} "$@"', "vduse")


def _closed(path: Path) -> Path | None:
    """The first folder on the way to it that nobody may go through."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def _open(folder: Path, needed: set[Path], place: str) -> Iterator[str]:
    """Commands that put another folder in its place, with nothing but what is needed there."""
    yield f"mount -t tmpfs -o mode=755 tmpfs {place}"
    for path in needed:
        if path.is_relative_to(folder):
            at = shlex.quote(f"{place}/{path.relative_to(folder)}")
            yield f"mkdir -p {at}"
            yield f"mount --bind {shlex.quote(str(path))} {at}"
    yield f"mount --move {place} {shlex.quote(str(folder))}"


def give(folder: Path) -> Path:
    """Lets that user write there."""
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    return folder


def capabilities(pid: int) -> set[str]:
    """Of a process, of all its sets (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split("\t")[1] for line in status if line.startswith("Cap")}
