"""The command line and its help come from the one table."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from vduse.daemon import cli
from vduse.daemon.commands import TABLE, BlkOptions, DemoOptions, DoctorOptions
from vduse.daemon.errors import UserError
from vduse.daemon.main import main
from vduse.daemon.table import Command


def test_defaults_are_those_of_the_options() -> None:
    assert cli.parse(TABLE, ["demo"]).options == DemoOptions()
    assert cli.parse(TABLE, ["doctor"]).options == DoctorOptions()
    assert cli.parse(TABLE, ["blk"]).options == BlkOptions()


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
        "--read-only --direct --layer read-only --nbd s.sock --nbd-mode 660"
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
        layer=("delay,read=1ms", "read-only"),
        nbd="s.sock",
        nbd_mode=0o660,
    )


@pytest.mark.parametrize("mode", ["", "rw", "8", "1000", "-1", "0x1ff"])
def test_file_mode_that_is_none(mode: str) -> None:
    with pytest.raises(UserError, match=f"'{mode}' is not a file mode: use 0600 to 0777"):
        cli.parse(TABLE, ["blk", f"--nbd-mode={mode}"])


@pytest.mark.parametrize("command", TABLE, ids=lambda c: c.name)
def test_examples_parse_and_are_in_the_help(
    command: Command[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command.name, "--help"]) == 0
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
