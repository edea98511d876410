"""The command line of `vduse run`: what it takes, what contradicts itself, who is served where."""

from __future__ import annotations

from typing import Any

import pytest

from vduse.daemon import cli
from vduse.daemon.commands import TABLE
from vduse.daemon.doors.nbd import NbdDoor
from vduse.daemon.doors.vhost_user import VhostUserDoor
from vduse.daemon.errors import UserError
from vduse.daemon.main import main
from vduse.daemon.run.commands import PROFILES, Place, RunOptions, place
from vduse.daemon.run.companions import needed_driver
from vduse.daemon.run.places import Places
from vduse.framework import profile
from vduse.run.hooks import Companion


def parse(*argv: str) -> RunOptions:
    options = cli.parse(TABLE, ["run", *argv]).options
    assert isinstance(options, RunOptions)
    return options


def test_what_is_behind_the_dashes_is_the_programs() -> None:
    options = parse("--restart", "--", "daemon", "--nbd", "x", "--", "-v", "--help")
    assert options.program == ("daemon", "--nbd", "x", "--", "-v", "--help")
    assert options.restart
    assert options.nbd == ()


def test_every_option() -> None:
    line = (
        "--nbd a.sock --nbd b=/run/b.sock --vhost-user ./c=d.sock --profile 7.2 --msg-timeout 2.5 "
        "--qmp q.sock --driver none -- daemon"
    )
    assert parse(*line.split()) == RunOptions(
        program=("daemon",),
        nbd=(Place(None, "a.sock"), Place("b", "/run/b.sock")),
        vhost_user=(Place(None, "./c=d.sock"),),
        driver="none",
        profile="7.2",
        msg_timeout=2.5,
        qmp="q.sock",
    )


@pytest.mark.parametrize("text", ["", "=s.sock", "a="])
def test_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="is no place to serve at: SOCKET, or NAME=SOCKET"):
        place(text)


@pytest.mark.parametrize(
    ("argv", "refusal"),
    [
        (("daemon", "--its-option"), "'daemon' comes behind --, with all that belongs to it"),
        (("--nbd", "s", "daemon"), "'daemon' comes behind --"),
        (("--ndb", "s", "--", "daemon"), "unknown option '--ndb', did you mean '--nbd'?"),
        ((), "say which program, behind --: vduse run --nbd disk.sock -- DAEMON ARGS"),
        (("--",), "say which program, behind --"),
        (("--", "/no/such/daemon"), "/no/such/daemon: no such program: check the path"),
        (("--nbd", "a=", "--", "true"), "'a=' is no place to serve at"),
        (("--driver", "none", "--nbd", "s", "--", "true"), "s needs virtio_vdpa, not no driver"),
        (("--nbd", "a=s", "--vhost-user", "a=t", "--", "true"), "a has one driver, so one socket"),
        (("--nbd", "a=s", "--nbd", "b=s", "--", "true"), "s: one socket is one device's"),
    ],
)
def test_what_the_person_is_told(
    argv: tuple[str, ...], refusal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *argv]) == 2
    assert refusal in capsys.readouterr().err


def test_profiles_are_the_frameworks() -> None:
    assert tuple(profile.PROFILES) == PROFILES


def test_doors_are_given_out_by_name_and_then_in_order() -> None:
    line = "--nbd first.sock --nbd b=b.sock --vhost-user second.sock -- daemon"
    places = Places(parse(*line.split()))
    assert places.take("b") == NbdDoor("b.sock", mode=0o600, description="")
    first = NbdDoor("first.sock", mode=0o600, description="")
    assert places.take("a") == first
    assert places.take("c") == VhostUserDoor("second.sock")
    assert places.take("d") is None
    assert places.take("a") == first  # created anew


def test_doors_that_no_device_came_for_are_told_of() -> None:
    line = "--nbd a.sock --nbd b=b.sock --nbd c.sock -- daemon"
    places = Places(parse(*line.split()))
    places.take("d")
    assert list(places.unused()) == [
        "nothing was served at b.sock: no device b came, but d",
        "nothing was served at c.sock: no device came for it",
    ]


class Needs(Companion):
    def __init__(self, driver: str | None) -> None:
        self.driver = driver


@pytest.mark.parametrize(
    ("drivers", "argv", "needed"),
    [
        ([], (), None),
        ([None], ("--nbd", "s"), None),
        (["vhost_vdpa", None], (), "vhost_vdpa"),
        (["vhost_vdpa"], ("--vhost-user", "s"), "vhost_vdpa"),
    ],
)
def test_driver_that_what_goes_along_needs(
    drivers: list[str | None], argv: Any, needed: str | None
) -> None:
    companions = tuple(map(Needs, drivers))
    assert needed_driver(companions, parse(*argv, "--", "daemon")) == needed


@pytest.mark.parametrize(
    ("drivers", "argv"),
    [
        (["vhost_vdpa", "virtio_vdpa"], ()),
        (["vhost_vdpa"], ("--nbd", "s")),
        (["vhost_vdpa"], ("--driver", "virtio_vdpa")),
    ],
)
def test_drivers_that_contradict_each_other(drivers: list[str | None], argv: Any) -> None:
    with pytest.raises(UserError, match="need"):
        needed_driver(tuple(map(Needs, drivers)), parse(*argv, "--", "daemon"))
