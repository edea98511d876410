"""The command line and its help come from the one table."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from vduse.daemon import cli
from vduse.daemon.commands import TABLE, BlkOptions, DemoOptions, DoctorOptions
from vduse.daemon.dev.commands import AddOptions, BindOptions
from vduse.daemon.errors import UserError
from vduse.daemon.main import main
from vduse.daemon.table import Command, Group


def test_defaults_are_those_of_the_options() -> None:
    assert cli.parse(TABLE, ["demo"]).options == DemoOptions()
    assert cli.parse(TABLE, ["doctor"]).options == DoctorOptions()
    assert cli.parse(TABLE, ["blk"]).options == BlkOptions()


def test_group_alone_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for group in (entry for entry in TABLE if isinstance(entry, Group)):
        for argv in ([group.name], [group.name, "--help"]):
            assert main(argv) == 0
            shown = capsys.readouterr().out
            assert shown.startswith(group.description)
            for command in group.commands:
                assert command.help in shown
                assert command.examples[0][0] in shown


def test_arguments_of_a_groups_command() -> None:
    options = cli.parse(TABLE, ["dev", "bind", "d", "vhost_vdpa", "--force", "--qmp", "s"]).options
    assert options == BindOptions("d", "vhost_vdpa", force=True, qmp="s")
    line = "dev add d --features 0x100000000 --mac 52:54:00:12:34:56 --mtu 1500 --max-vq-pairs 2"
    assert cli.parse(TABLE, line.split()).options == AddOptions(
        "d", features=1 << 32, mac="52:54:00:12:34:56", mtu=1500, max_vq_pairs=2
    )


def test_every_option_of_the_demo() -> None:
    line = "demo d.img --size 64M --queues 4 --queue-size 128 --packed --read-only --direct --keep"
    invocation = cli.parse(TABLE, [*line.split(), "--json", "-vv"])
    assert invocation.options == DemoOptions(
        image="d.img",
        size=64 << 20,
        queues=4,
        queue_size=128,
        packed=True,
        read_only=True,
        direct=True,
        keep=True,
    )
    assert (invocation.json, invocation.verbosity) == (True, 2)


def test_every_option_of_blk() -> None:
    line = (
        "blk --layer delay,read=1ms null --size 4k --name d --queues 2 --queue-size 8 --packed "
        "--read-only --direct --umem --layer read-only --nbd s.sock --nbd-mode 660 --qmp q.sock "
        "--via embedded --driver vhost_vdpa"
    )
    assert cli.parse(TABLE, line.split()).options == BlkOptions(
        backend="null",
        size=4096,
        name="d",
        queues=2,
        queue_size=8,
        packed=True,
        read_only=True,
        direct=True,
        umem=True,
        layer=("delay,read=1ms", "read-only"),
        nbd="s.sock",
        nbd_mode=0o660,
        qmp="q.sock",
        via="embedded",
        driver="vhost_vdpa",
    )


@pytest.mark.parametrize("mode", ["", "rw", "8", "1000", "-1", "0x1ff"])
def test_file_mode_that_is_none(mode: str) -> None:
    with pytest.raises(UserError, match=f"'{mode}' is not a file mode: use 0600 to 0777"):
        cli.parse(TABLE, ["blk", f"--nbd-mode={mode}"])


def every_command() -> Iterator[Command[Any, Any]]:
    for entry in TABLE:
        yield from entry.commands if isinstance(entry, Group) else (entry,)


@pytest.mark.parametrize("command", list(every_command()), ids=lambda c: c.name)
def test_examples_parse_and_are_in_the_help(
    command: Command[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert command.examples
    for line, what in command.examples:
        assert line in shown
        assert what in shown
        program, *argv = shlex.split(line)
        assert program == "vduse"
        assert cli.parse(TABLE, argv).command is command


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_overview_lists_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    shown = capsys.readouterr().out
    for command in TABLE:
        assert f"vduse {command.name:14} {command.help}\n" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vduse 0.")
