"""What belongs to others, and odd ways to what there is."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tests.system.villains.base import (
    CONFIG,
    FOLDER,
    NEIGHBOUR,
    ioctl,
    open_control,
    open_node,
    outcome,
    say,
    villain,
)
from vduse.control.abi import (
    Ioctl,
    pack_name,
)


@villain
def others_devices() -> None:
    """The neighbour's."""
    control = open_control()
    say(outcome(open_node, NEIGHBOUR))
    say(outcome(ioctl, control, Ioctl.DESTROY_DEV, pack_name(NEIGHBOUR)))
    say(outcome(ioctl, control, Ioctl.CREATE_DEV, replace(CONFIG, name=NEIGHBOUR).pack()))


@villain
def names() -> None:
    """Devices with names that mean something else to others."""
    control = open_control()
    for name in (
        ".",
        "..",
        "control",
        "a/b",
        "../../etc/passwd",
        "\n",
        "%s%n",
        "\udcff",
        "n" * 255,
    ):
        ioctl(control, Ioctl.CREATE_DEV, replace(CONFIG, name=name).pack())
        with suppress(OSError, UnicodeError):
            os.close(open_node(name))
        ioctl(control, Ioctl.DESTROY_DEV, pack_name(name))


@villain
def ways_to_the_control_node() -> None:
    """Relative paths, folders, links, flags."""
    folder = Path(sys.argv[2])
    link, to_folder = folder / "link", folder / "folder"
    link.symlink_to(f"{FOLDER}/control")
    to_folder.symlink_to(FOLDER)
    dev = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir("/dev")
    found = {
        "relative": outcome(os.open, "vduse/control", os.O_RDWR),
        "dots": outcome(os.open, "/dev/../dev/.//vduse/./control", os.O_RDWR),
        "at a folder": outcome(lambda: os.open("vduse/control", os.O_RDWR, dir_fd=dev)),
        "a link": outcome(os.open, link, os.O_RDWR),
        "a link to the folder": outcome(os.open, to_folder / "control", os.O_RDWR),
        "below it": outcome(os.open, f"{FOLDER}/control/x", os.O_RDWR),
        "nobody's": outcome(os.open, f"{FOLDER}/nobody", os.O_RDWR),
        "a long name": outcome(os.open, f"{FOLDER}/{'n' * 300}", os.O_RDWR),
        "a long path": outcome(os.open, FOLDER + "/." * 3000 + "/control", os.O_RDWR),
        "created": outcome(os.open, f"{FOLDER}/control", os.O_RDWR | os.O_CREAT | os.O_EXCL),
        "a folder": outcome(os.open, f"{FOLDER}/control", os.O_RDONLY | os.O_DIRECTORY),
        "executable": outcome(os.execv, f"{FOLDER}/control", ["control"]),
    }
    for way, told in found.items():
        say(f"{way}: {told}")
