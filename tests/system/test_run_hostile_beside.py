"""The command `vduse run` with a daemon and villains (villains/) in one run: the daemon's
data is right, the villains' devices are named, and nothing is left of any of them."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import uuid
from pathlib import Path

import pytest

from tests.daemons.build import build_tiny_blk
from tests.system.nbd_clients import fio_verified
from tests.system.run_stage import TREE
from tests.system.test_run_command import Folder

pytestmark = pytest.mark.needs("cc", "fio")

#: One after the other; each device is put on the bus while it misbehaves, if it lives that long.
VILLAINS = (
    *("garbage", "oversized", "killed_in_mid_ioctl", "exits_in_mid_ioctl", "hoards_fds", "orphan"),
    *("silent", "random_structs", "opens_and_closes", "exits_in_mid_message"),
)
#: Starts the daemon, then the villains, and says when the last of them has ended.
SCRIPT = """
./tiny_blk good good.img &
cd "$TREE"
for villain in "$@"; do
    VILLAIN=$villain "$PYTHON" -m tests.system.villains $villain < /dev/null
done
echo done > "$DONE"
wait
"""
#: Open files that the command may have: few.
FILES = 256


def processes_with(mark: str) -> list[int]:
    """Whose environment has it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # it has ended
                continue
            if mark.encode() in environment:
                found.append(int(entry.name))
    return found


def limit_files() -> None:
    """In the child: as an ordinary user's."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


def test_villains_beside_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    build_tiny_blk(tmp_path)
    folder.image("good")
    done = tmp_path / "done"
    os.mkfifo(done)
    mark = f"hostile-run-{uuid.uuid4()}"
    for name, value in {
        "MARK": mark,
        "PYTHON": sys.executable,
        "TREE": str(TREE),
        "DONE": str(done),
    }.items():
        monkeypatch.setenv(name, value)
    argv = ["sh", "-c", SCRIPT, "sh", *VILLAINS]
    options = ("--nbd", "good=s", "--msg-timeout", "1")
    with (
        open(done, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as fifo,
        folder.running(argv, *options, preexec_fn=limit_files) as child,
    ):
        child.wait_for("serving", name="good")
        while not select.select([fifo], [], [], 0)[0]:
            assert fio_verified(folder.uri("s"), tmp_path, size="1m", bs="4k").error == 0
        child.wait_for("broken", name="silent")
        child.process.send_signal(signal.SIGTERM)
        ended = child.wait_for("ended")
        assert child.wait() == 1
        broken = {fact["name"] for fact in child.facts if fact["event"] == "broken"}
        assert "good" not in broken
        assert broken <= set(VILLAINS)
        assert not any("good" in failure for failure in ended["failures"])
    assert processes_with(mark) == []
    assert not (tmp_path / "s").exists()
