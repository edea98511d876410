"""A person's mistake is one line on stderr that says what to do, and exit code 2."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from vduse.bus.errors import DeviceTimedOut
from vduse.daemon import main as program
from vduse.daemon.errors import Stopped, UserError, image_error

DEMO_HELP = "(vduse demo --help shows how)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dmo", "unknown command 'dmo', did you mean 'demo'? (vduse --help lists them)"),
        ("--frob", "a command comes first, then '--frob' (vduse --help lists them)"),
        ("demo --sise 3", f"unknown option '--sise', did you mean '--size'? {DEMO_HELP}"),
        ("demo a b", f"unknown argument 'b' {DEMO_HELP}"),
        ("demo -- a --size", f"unknown argument '--size' {DEMO_HELP}"),
        ("demo --size", f"argument --size: expected one argument {DEMO_HELP}"),
        (
            "demo --size 3X",
            "argument --size: '3X' is not a size: use a whole number of bytes, or of k, M, G, T "
            f"(1k = 1024), for example 512, 4k or 1G {DEMO_HELP}",
        ),
        (
            "demo --queues 0",
            f"argument --queues: '0' is not a whole number from 1 to 64 {DEMO_HELP}",
        ),
        (
            f"demo --queues {'9' * 5000}",
            f"argument --queues: '{'9' * 5000}' is not a whole number from 1 to 64 {DEMO_HELP}",
        ),
        (
            "demo --queue-size two",
            f"argument --queue-size: 'two' is not a power of two from 4 to 32768 {DEMO_HELP}",
        ),
        (
            "dev lst",
            "unknown command 'lst', did you mean 'list'? (vduse dev --help lists them)",
        ),
        (
            "dev --qmp s list",
            "a command comes first, then '--qmp' (vduse dev --help lists them)",
        ),
        (
            "dev del",
            "the following arguments are required: NAME (vduse dev del --help shows how)",
        ),
        (
            "dev bind disk0 vhost",
            "argument DRIVER: 'vhost' is none of virtio_vdpa, vhost_vdpa, did you mean "
            "'vhost_vdpa'? (vduse dev bind --help shows how)",
        ),
        (
            "dev add d --mac 52:54",
            "argument --mac: '52:54' is not a MAC address, for example 52:54:00:12:34:56 "
            "(vduse dev add --help shows how)",
        ),
        (
            "dev add d --features x",
            "argument --features: 'x' is not a number of 64 bits, for example 0x300000000 "
            "(vduse dev add --help shows how)",
        ),
        (
            "doctor --jsn",
            "unknown option '--jsn', did you mean '--json'? (vduse doctor --help shows how)",
        ),
    ],
)
def test_bad_command_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.err == f"vduse: error: {message}\n"
    assert captured.out == ""


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["demo", "--read"]) == 2
    assert "unknown option '--read'" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "code"), [("doctor --json", 0), ("dev list --qmp nobody -v", 2)])
def test_a_command_leaves_its_callers_logging_alone(line: str, code: int) -> None:
    logger = logging.getLogger("vduse")
    before = (list(logger.handlers), logger.propagate, logger.level)
    assert program.main(line.split()) == code
    assert (logger.handlers, logger.propagate, logger.level) == before


@pytest.mark.parametrize(
    ("raised", "code", "err"),
    [
        (UserError("use another name"), 2, "vduse: error: use another name\n"),
        (Stopped(2), 130, "vduse: stopped\n"),
        (Stopped(15), 143, "vduse: stopped\n"),
        (
            ValueError("odd"),
            1,
            "vduse: internal fault: ValueError: odd "
            "(run again with -v for the traceback, and report it)\n",
        ),
    ],
)
def test_how_a_command_ends(
    raised: BaseException,
    code: int,
    err: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: object) -> int:
        raise raised

    caplog.set_level(logging.WARNING, "vduse")
    monkeypatch.setattr(program, "_run", run)
    assert program.main(["demo"]) == code
    assert capsys.readouterr().err == err


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOENT, "no such file or folder: check the path"),
        (errno.EAGAIN, "in use by another program: stop that one first, or use another image"),
        (errno.EISDIR, "it is a folder: name a file in it"),
        (errno.ENXIO, "neither a file nor a block device: name a disk image"),
        (errno.ELOOP, "its symbolic links go round in a circle: check the path"),
        (errno.ENODATA, "No data available"),
    ],
)
def test_image_errors_say_what_to_do(number: int, advice: str, tmp_path: Path) -> None:
    image = str(tmp_path / "disk.img")
    error = image_error(image, OSError(number, os.strerror(number)))
    assert str(error) == f"{image}: {advice}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DeviceTimedOut("device demo is broken"), "device demo is broken"),
        (
            OSError(errno.EMFILE, "eventfd"),
            "too many open files for this process: raise the limit (ulimit -n, LimitNOFILE= of its "
            "unit)",
        ),
        (MemoryError(), "not enough memory: free some, or raise the limit (ulimit -v)"),
        (
            RuntimeError("can't start new thread"),
            "no more threads for this process: raise the limits (ulimit -u, -v)",
        ),
        (
            FileNotFoundError(errno.ENOENT, "", "d.img"),
            "d.img: no such file or folder: check the path",
        ),
    ],
)
def test_refusals_of_framework_and_system_are_one_line(
    error: Exception,
    line: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: object) -> int:
        raise error

    caplog.set_level(logging.WARNING, "vduse")
    monkeypatch.setattr(program, "_run", run)
    assert program.main(["demo"]) == 2
    assert capsys.readouterr().err == f"vduse: error: {line}\n"
