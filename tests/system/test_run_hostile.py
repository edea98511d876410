"""Programs under `vduse run` that misuse /dev/vduse (villains/): each hurts itself alone.

Beside every one of them a neighbour's data is verified; after it the device is gone, and no fd and
no thread of the supervisor's is left.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons.build import build_tiny_blk
from tests.system.run_stage import HOSTILE, RunStage
from vduse.bus.errors import DeviceTimedOut

pytestmark = pytest.mark.needs("cc")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunStage]:
    """One for all villains, so that what one has left behind is found by the next."""
    folder = tmp_path_factory.mktemp("run")
    stage = RunStage(build_tiny_blk(folder), folder)
    yield stage
    stage.close()


def add_in_vain(stage: RunStage) -> None:
    """The villain does not answer."""
    with pytest.raises(DeviceTimedOut):
        stage.framework.dev_add(HOSTILE)


#: What the villains that need nobody print before they are done.
ALONE = {
    # Its node is as it was.
    "garbage": ["ok"],
    # The node is closed at once, and opens again.
    "oversized": ["ENOTTY", "ok"],
    "empty_write": ["ok ok"],
    # The node of one that was killed is free at once.
    "killed_in_mid_ioctl": ["ok"],
    "threads_at_once": [""],
    "interrupted": ["ok"],
    "opens_and_closes": [""],
    # The other program has the node, and it is the only one.
    "replaced": ["ok EBUSY"],
    "kick_fds": ["EINVAL"] * 3 + ["EBADF"] * 2 + ["EINVAL"],
    # On a device's node, on the control node.
    "numbers_that_do_not_exist": ["ENOTTY", "EINVAL"],
    "bad_addresses": ["ok"],
    "read_only_memory": ["EFAULT", "EINVAL"],
    "changing_memory": [""],
    # It is not on the bus: nothing is mapped.
    "random_structs": ["EINVAL"],
    # open, destroy, create
    "others_devices": ["EBUSY", "EBUSY", "EEXIST"],
    "names": [],
}


@pytest.mark.parametrize("name", ALONE)
def test_villain_hurts_itself_alone(stage: RunStage, name: str) -> None:
    with stage.villain(name) as villain:
        assert villain.lines() == [*ALONE[name], "done"]
        assert villain.wait() == 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("garbage", f"{HOSTILE}: response refused: vduse_dev_response: "),
        ("oversized", f"{HOSTILE}: message socket closed: packet of more than "),
    ],
)
def test_log_says_once_what_it_did(stage: RunStage, name: str, line: str) -> None:
    """However often it did."""
    stage.log.clear()
    with stage.villain(name) as villain:
        assert villain.wait() == 0
    stage.log.wait_for(line)
    assert sum(said.startswith(line) for said in stage.log.lines) == 1


def test_ways_to_the_control_node(stage: RunStage, tmp_path: Path) -> None:
    """By its text: a path through a link leads into the file system, where there is none."""
    with stage.villain("ways_to_the_control_node", str(tmp_path)) as villain:
        assert villain.lines() == [
            "relative: ok",
            "dots: ok",
            "at a folder: ok",
            "a link: ENOENT",
            "a link to the folder: ENOENT",
            "below it: ENOTDIR",
            "nobody's: ENOENT",
            "a long name: ENOENT",
            "a long path: ENAMETOOLONG",
            "created: EEXIST",
            "a folder: ENOTDIR",
            "executable: ENOENT",
            "done",
        ]


# --- messages ------------------------------------------------------------------------------


def test_a_silent_device_is_given_up(stage: RunStage) -> None:
    """Whoever asks it waits up to msg_timeout, and nobody else does."""
    with stage.villain("silent") as villain:
        assert villain.line() == "ready"
        stage.framework.device(HOSTILE).msg_timeout = 0.5
        add_in_vain(stage)
        villain.say("go on")
        assert villain.lines() == ["EPERM", "EPERM", "EPERM", "done"]
    stage.log.wait_for(f"device {HOSTILE} is broken: ")


def test_a_node_that_closes_in_mid_message_is_asked_again(stage: RunStage) -> None:
    """Five times in the life of one driver's probe."""
    with stage.villain("closes_in_mid_message") as villain:
        assert villain.line() == "ready"
        stage.framework.dev_add(HOSTILE)
        stage.framework.dev_del(HOSTILE)
        villain.say("end")
        lines = villain.lines()
        assert len(lines) > 5
        assert set(lines) == {"replayed", "done"}


def test_a_program_that_ends_in_mid_message_leaves_its_device(stage: RunStage) -> None:
    """The message waits for a successor until its time is over."""
    with stage.villain("exits_in_mid_message") as villain:
        assert villain.line() == "ready"
        stage.framework.device(HOSTILE).msg_timeout = 1
        adding = threading.Thread(target=add_in_vain, args=(stage,))
        adding.start()
        assert villain.wait() == 0
        adding.join()
        assert stage.framework.device(HOSTILE).messages.broken


# --- its end -------------------------------------------------------------------------------


def test_a_program_that_exits_in_mid_ioctl(stage: RunStage) -> None:
    with stage.villain("exits_in_mid_ioctl") as villain:
        assert villain.lines() == ["done"]
        assert villain.wait() == 3


@pytest.mark.parametrize("name", ["silent", "threads_at_once", "opens_and_closes"])
def test_a_program_that_is_killed(stage: RunStage, name: str) -> None:
    """At whatever it is."""
    with stage.villain(name) as villain:
        assert stage.settled(lambda: HOSTILE in stage.framework.devices)
        os.kill(villain.supervised.pid, signal.SIGKILL)
        assert villain.wait() == -signal.SIGKILL


def test_an_orphan_keeps_the_node_until_its_end(stage: RunStage) -> None:
    with stage.villain("orphan") as villain:
        child, done = villain.lines()
        assert (done, villain.wait()) == ("done", 0)
        assert stage.framework.device(HOSTILE).connected
        os.kill(int(child), signal.SIGKILL)
        assert stage.settled(lambda: not stage.framework.device(HOSTILE).connected)


# --- fds -----------------------------------------------------------------------------------


def test_one_that_has_all_nodes_takes_none_from_others(stage: RunStage) -> None:
    with stage.villain("hoards_fds") as villain:
        told = [villain.line() for _ in range(5)]
        assert told == ["nodes EMFILE", "dups EMFILE", "ok", "ok", "full"]
        villain.say("go on")
        assert villain.lines() == ["ok", "done"]
