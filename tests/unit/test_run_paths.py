"""What a program finds at /dev/vduse."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

import pytest

from vduse.run.paths import check_open, look, name_of


class Device(NamedTuple):
    """As far as its number."""

    number: int


DEVICES = {"vd0": Device(1), "vd1": Device(2)}


def test_nodes_are_character_devices_in_a_folder() -> None:
    folder, control, device = (
        look(path, DEVICES) for path in ("/dev/vduse", "/dev/vduse/control", "/dev/vduse/vd0")
    )
    assert stat.S_ISDIR(folder.mode)
    for node in (control, device):
        assert stat.S_ISCHR(node.mode)
        assert stat.S_IMODE(node.mode) == 0o600
    assert os.minor(control.rdev) == 0
    assert os.minor(device.rdev) > 0
    assert look("/dev/vduse/vd0", DEVICES) == device
    assert look("/dev/vduse/vd1", DEVICES) != device


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/dev/vduse/vd2", errno.ENOENT),
        ("/dev/vduse/vd2/x", errno.ENOENT),
        ("/dev/vduse/vd0/x", errno.ENOTDIR),
        ("/dev/vduse/control/x", errno.ENOTDIR),
        ("/dev/vduse/\udcff", errno.ENOENT),
    ],
)
def test_what_is_not_there(path: str, code: int) -> None:
    with pytest.raises(OSError) as caught:
        look(path, DEVICES)
    assert caught.value.errno == code


@pytest.mark.parametrize(
    ("path", "flags", "code"),
    [
        ("/dev/vduse", os.O_RDONLY | os.O_DIRECTORY, errno.EACCES),
        ("/dev/vduse", os.O_RDWR, errno.EISDIR),
        ("/dev/vduse/control", os.O_PATH, errno.EACCES),
        ("/dev/vduse/control", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        ("/dev/vduse/vd0", os.O_RDWR | os.O_CREAT | os.O_EXCL, errno.EEXIST),
    ],
)
def test_what_open_refuses(path: str, flags: int, code: int) -> None:
    with pytest.raises(OSError) as caught:
        check_open(name_of(path, DEVICES), flags)
    assert caught.value.errno == code


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK])
def test_what_open_takes(flags: int) -> None:
    check_open("control", flags)
    check_open("vd0", flags)
