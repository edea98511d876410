"""`vduse trace show` and `compare`, and the options that make recordings."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vduse.channel import normalized
from vduse.channel.base import EXT_CALLFD
from vduse.channel.recording import (
    Counted,
    End,
    Entry,
    Header,
    Lost,
    Reader,
    RecordingError,
    encode,
    encode_header,
)
from vduse.channel.tap import Called, Closed, Messaged, Opened, Responded
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    ExtCall,
    GetVqState,
    Ioctl,
    IovaUmem,
    SetStatus,
    UpdateCallfd,
    VqEventfd,
    VqInfo,
    pack_name,
    pack_u32,
)
from vduse.daemon import cli
from vduse.daemon.commands import TABLE, BlkOptions
from vduse.daemon.errors import UserError
from vduse.daemon.main import main
from vduse.daemon.trace import compare as compare_module
from vduse.daemon.trace.companion import TraceCompanion
from vduse.daemon.trace.compare import Comparison, compare
from vduse.daemon.trace.tracing import Tracing, header_of_embedded, header_of_kernel, header_of_run

HEADER = Header(
    version="0.1",
    started="2026-01-01T00:00:00.000+00:00",
    framework="embedded",
    kernel="6.12",
    seen_by="framework",
    program=("daemon",),
)


def created(name: str, features: int = 1) -> Called:
    config = DevConfig(name, 0, 2, features, 1, 4096)
    return Called("", 0.5, Ioctl.CREATE_DEV, config.pack(), 0, 0, b"", 0)


def irq(name: str, time: float = 2.0, result: int = 0) -> Called:
    return Called(name, time, Ioctl.VQ_INJECT_IRQ, pack_u32(0), 0, result, b"", 0)


def message(name: str, number: int, status: int) -> Messaged:
    return Messaged(name, 1.0, DevRequest(number, SetStatus(status)))


def answer(name: str, number: int, result: int = 0) -> Responded:
    return Responded(name, 1.25, DevResponse(number, result))


def life(name: str, first_id: int = 0, features: int = 1) -> list[Entry]:
    """A device's, in short."""
    return [
        created(name, features),
        Opened(name, 0.75),
        message(name, first_id, 0),
        answer(name, first_id),
        message(name, first_id + 1, 1),
        answer(name, first_id + 1),
        irq(name),
        irq(name, 3.5),
        Closed(name, 4.0),
    ]


def written(entries: Iterable[Entry], header: Header = HEADER, *, end: bool = True) -> bytes:
    lines = [encode(entry, 0.0) for entry in (*entries, *([End(9.0)] if end else []))]
    return encode_header(header) + b"".join(lines)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vduse(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# --- show ------------------------------------------------------------------------------------


def test_a_recording_is_a_sequence_in_two_lanes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a").write_bytes(written(life("disk0")))
    code, out, err = vduse(capsys, "trace", "show", "a")
    assert (code, err) == (0, "")
    left = " " * 40
    assert out.splitlines() == [
        "daemon, on the embedded framework as kernel 6.12, 2026-01-01T00:00:00.000+00:00",
        "   seconds  framework                                    program",
        f"  0.500000  {left} <-- control CREATE_DEV(name=disk0 device_id=2 features=1 vq_num=1 "
        "vq_align=4096) = 0",
        f"  0.750000  {left} <-- disk0 open",
        f"  1.000000  {'disk0 #0 SET_STATUS 0x0':40} -->",
        f"  1.250000  {left} <-- disk0 #0 OK",
        f"  1.000000  {'disk0 #1 SET_STATUS 0x1 ACKNOWLEDGE':40} -->",
        f"  1.250000  {left} <-- disk0 #1 OK",
        f"  4.000000  {left} <-- disk0 close",
        "data path  disk0  VQ_INJECT_IRQ = 0  2 times, from 2.000000 to 3.500000 s",
    ]


def test_a_recording_in_lines_of_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counted = Counted("disk0", 5.0, Ioctl.IOTLB_GET_FD, -22, 7)
    (folder / "a").write_bytes(written([*life("disk0"), counted]))
    code, out, _ = vduse(capsys, "trace", "show", "a", "--json")
    assert code == 0
    about, *steps, irqs, fds, finish = map(json.loads, out.splitlines())
    assert (about["event"], about["kernel"], about["program"]) == ("recording", "6.12", ["daemon"])
    assert [step["lane"] for step in steps] == [
        *("program", "program", "framework", "program", "framework", "program", "program")
    ]
    assert steps[2] == {
        "event": "step",
        "line": 4,
        "time": 1.0,
        "lane": "framework",
        "device": "disk0",
        "text": "disk0 #0 SET_STATUS 0x0",
    }
    assert fds == {
        "event": "data path",
        "device": "disk0",
        "call": "IOTLB_GET_FD",
        "result": "EINVAL",
        "count": 7,
        "first": None,
        "last": None,
    }
    assert (irqs["count"], irqs["first"], irqs["last"]) == (2, 2.0, 3.5)
    assert finish == {"event": "end", "steps": 7, "lost": 0, "cut": None}


def test_one_that_was_cut_is_shown_up_to_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(life("disk0"))
    (folder / "a").write_bytes(data[: data.index(b"close") + 3])
    code, out, err = vduse(capsys, "trace", "show", "a")
    assert code == 0
    assert out.splitlines()[-1].startswith("data path  disk0  VQ_INJECT_IRQ")
    assert err == "vduse: the recording is cut in the middle of line 10\n"


def test_what_is_missing_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a").write_bytes(written([Opened("d", 0.0), Lost(3), Lost(4)], end=False))
    code, _, err = vduse(capsys, "trace", "show", "a")
    assert code == 0
    assert err == (
        "vduse: the recording is without its end: it was cut, or its program runs still or was "
        "killed\nvduse: 7 calls and messages are missing: the file did not keep up\n"
    )


def test_names_do_not_reach_the_terminal_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J[red]:smile:"
    (folder / "a").write_bytes(written([*life(name)]))
    _, out, _ = vduse(capsys, "trace", "show", "a")
    assert "\x1b" not in out
    assert "\\x1b[2J[red]:smile: open" in out


@pytest.mark.parametrize("command", ["show a", "compare a good", "compare good a"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "a: no such file or folder: check the path"),
        (b"", "a: no recording (of --trace-json)"),
        (b"hello\n", "a: no recording (of --trace-json)"),
        (b'{"vduse-recording":9}\n', "a: format 9, and this vduse reads 1: use a newer"),
        (written([Opened("d", 0.0)], end=False) + b"{}\n", "a, line 3: damaged: "),
    ],
)
def test_what_cannot_be_read_is_refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    data: bytes | None,
    message: str,
) -> None:
    (folder / "good").write_bytes(written(life("d")))
    if data is not None:
        (folder / "a").write_bytes(data)
    code, _, err = vduse(capsys, "trace", *command.split())
    assert code == 2
    assert err.startswith(f"vduse: error: {message}")
    assert err.count("\n") == 1


def test_a_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = vduse(capsys, "trace", "show", ".")
    assert (code, err) == (2, "vduse: error: .: it is a folder: name a file in it\n")


def test_too_many_kinds_of_calls_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a").write_bytes(written(irq(f"d{n}") for n in range((1 << 16) + 1)))
    code, _, err = vduse(capsys, "trace", "show", "a")
    assert code == 2
    assert "more than 65536 kinds of calls" in err


# --- compare ---------------------------------------------------------------------------------


def compared(ours: Iterable[Entry], theirs: Iterable[Entry], other: Header = HEADER) -> Comparison:
    readers = [
        Reader(io.BytesIO(data), name)
        for data, name in ((written(ours), "ours"), (written(theirs, other), "theirs"))
    ]
    return compare(*readers)


def test_ids_times_fds_and_addresses_are_aside() -> None:
    def run(number: int, time: float, fd: int, address: int) -> list[Entry]:
        info = VqInfo(0, 8, address, address + 1, address + 2, ready=True)
        umem = IovaUmem(address, 0, 4096)
        return [
            dataclasses.replace(created("d"), time=time),
            *life("d", number)[1:],
            Called("d", time, Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, fd).pack(), 1, 0, b"", 0),
            # QEMU leaves in the struct what was on its stack.
            Called("d", time, Ioctl.VQ_GET_INFO, VqInfo(0, number).pack(), 0, 0, info.pack(), 0),
            Called("", time, Ioctl.DESTROY_DEV, b"d\0" + bytes([number] * 9), 0, 0, b"", 0),
            Called("d", time, Ioctl.IOTLB_REG_UMEM, umem.pack(), 0, 0, b"", 0),
            irq("d", time),
        ]

    found = compared(run(0, 1.0, 5, 1 << 40), run(77, 2.0, 6, 1 << 41))
    assert found.equal
    assert (found.devices, found.same, found.same_kinds) == (("d",), 11, 1)
    assert not compared(run(0, 1.0, 5, 1 << 40), run(0, 1.0, -1, 1 << 40)).equal
    assert not compared(run(0, 1.0, 5, 1 << 40), run(0, 1.0, 5, 0)).equal


def test_it_says_where_they_part_and_what_each_did(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = life("d")
    theirs = [*life("d", 40)[:5], answer("d", 41, 1), Closed("d", 4.5)]
    (folder / "a").write_bytes(written(ours))
    (folder / "b").write_bytes(written(theirs))
    code, out, err = vduse(capsys, "trace", "compare", "a", "b")
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        "- a",
        "+ b",
        "d, program: 3 calls and answers are the same, then",
        "  line 2        0.500000  control CREATE_DEV(name=d device_id=2 features=1 vq_num=1 "
        "vq_align=4096) = 0",
        "  line 3        0.750000  d open",
        "  line 5        1.250000  d -> #1 OK",
        "- line 7        1.250000  d -> #2 OK",
        "- line 10       4.000000  d close",
        "+ line 7        1.250000  d -> #2 FAILED",
        "+ line 8        4.500000  d close",
        "- data path  d  VQ_INJECT_IRQ = 0, 2 times; not in the other",
    ]
    code, out, _ = vduse(capsys, "trace", "compare", "a", "b", "--json")
    facts = json.loads(out)
    assert (code, facts["equal"], facts["same"]) == (1, False, 5)
    [parting] = facts["partings"]
    assert [step["text"] for step in parting["ours"]] == ["d -> #2 OK", "d close"]
    assert facts["data_path"] == [
        {"device": "d", "call": "VQ_INJECT_IRQ = 0", "count": 2, "where": "ours"}
    ]
    assert vduse(capsys, "trace", "compare", "a", "a")[:2] == (
        0,
        "equal: 7 calls and messages of the control path, 1 kinds of calls of the data path, "
        "devices: d\n",
    )


def test_one_that_goes_on_is_another() -> None:
    found = compared(life("d")[:4], life("d"))
    framework, program = found.partings
    assert (framework.lane, framework.same, framework.ours) == ("framework", 1, ())
    assert [step.text for step in framework.theirs] == ["d <- #2 SET_STATUS 0x1 ACKNOWLEDGE"]
    assert (program.lane, program.same, program.ours) == ("program", 3, ())
    assert [step.text for step in program.theirs] == ["d -> #2 OK", "d close"]


def test_which_side_is_first_does_not_matter() -> None:
    ours = life("d")
    setup = Called("d", 1.0, Ioctl.VQ_SETUP, bytes(32), 0, 0, b"", 0)
    assert compared([*ours[:2], setup, *ours[2:]], [*ours[:3], setup, *ours[3:]]).equal
    assert not compared([*ours[:2], setup, *ours[2:]], [*ours[:4], setup, *ours[4:]]).equal


def test_which_device_is_first_does_not_matter() -> None:
    one, two = life("d1"), life("d2")
    interleaved = [entry for pair in zip(one, two, strict=True) for entry in pair]
    assert compared([*two, *one], interleaved).equal
    [parting] = compared([*two, *life("d1", features=3)], interleaved).partings
    assert (parting.device, parting.lane, parting.same) == ("d1", "program", 0)


def test_results_of_the_data_path_are_compared_and_their_numbers_are_not() -> None:
    assert compared([irq("d")], [irq("d")] * 100).equal
    # What a kernel returns is the fd.
    fd = Called("d", 1.0, Ioctl.IOTLB_GET_FD, b"", 0, 17, b"", 0)
    assert compared([fd], [Counted("d", 1.0, Ioctl.IOTLB_GET_FD, 0, 3)]).equal
    found = compared([irq("d")], [irq("d"), irq("d", result=-22)])
    assert not found.equal
    [only] = found.data_path
    assert (only.call, only.where) == ("VQ_INJECT_IRQ = EINVAL", "theirs")
    assert not compared([irq("d1")], [irq("d2")]).equal


def extended(name: str) -> list[Entry]:
    """A life on a channel with call fds."""
    return [
        *life(name)[:4],
        Called(name, 1.0, ExtCall.VQ_GET_CALLFD, pack_u32(0), 0, 0, b"", 1),
        Called("", 1.0, ExtCall.OPEN, pack_name(name), 0, 0, b"", 2),
        Messaged(name, 1.0, DevRequest(1, UpdateCallfd(0))),
        answer(name, 1),
        message(name, 2, 1),
        answer(name, 2),
        Closed(name, 4.0),
    ]


def test_what_a_kernel_does_not_have_is_aside_where_one_is_the_kernels() -> None:
    kernel = msgspec.structs.replace(HEADER, framework="kernel", kernel="6.12.57", seen_by="device")
    ours = msgspec.structs.replace(HEADER, extensions=(EXT_CALLFD,))
    found = compared(life("d"), extended("d"), ours)
    assert found.equal
    assert found.notes == (
        "extensions of the channel are left aside: only one of the two has them",
    )
    assert compared(life("d"), life("d"), kernel).equal
    # Among ourselves they count.
    assert not compared(life("d"), extended("d")).equal


def test_what_is_wrong_with_a_recording_is_noted() -> None:
    readers = [
        Reader(io.BytesIO(written([*life("d"), *more], end=end)), name)
        for name, more, end in (("a", [], False), ("b", [Lost(2)], True))
    ]
    found = compare(*readers)
    assert found.equal
    assert [note.split(":")[0] for note in found.notes] == ["a", "b"]


# --- gigabytes -------------------------------------------------------------------------------


class Endless(io.RawIOBase):
    """A recording of as many lines as asked for, made as it is read."""

    def __init__(self, lines: int, line: Callable[[int], Entry]) -> None:
        self._next = iter([encode_header(HEADER)])
        self._lines = lines
        self._line = line
        self._made = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        if (first := next(self._next, None)) is not None:
            return first
        if self._made == self._lines:
            return b""
        self._made += 1
        return encode(self._line(self._made), 0.0)


def peak(action: Callable[[], object]) -> int:
    """Bytes of memory that it took at most."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LINES = 8000


@pytest.mark.parametrize(
    "line",
    [
        lambda number: irq("d", number / 10),
        lambda number: message("d", number, 0),
        lambda number: answer("d", number),
        lambda number: Called("", 0.0, Ioctl.DESTROY_DEV, b"d\0", 0, -22, b"", 0),
    ],
    ids=["data path", "unanswered messages", "answers to nothing", "calls"],
)
def test_a_long_recording_takes_no_more_memory(
    line: Callable[[int], Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (normalized, compare_module):
        monkeypatch.setattr(module, "_MOST_UNANSWERED", 100)

    def run(lines: int) -> Callable[[], object]:
        files: list[Any] = [Endless(lines, line), Endless(lines, line)]
        return lambda: compare(*(Reader(file, "long") for file in files))

    run(LINES // 4)()  # what is made once
    # What is more would be 2 MB and more.
    assert peak(run(LINES)) - peak(run(LINES // 4)) < 1 << 18


def test_recordings_too_far_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "_MOST_AHEAD", 100)
    one = [message("d1", n, 0) for n in range(200)]
    two = [message("d2", n, 0) for n in range(200)]
    with pytest.raises(RecordingError, match="too far apart to be compared"):
        compared([*one, *two], [*two, *one])
    assert compared([*one, *two], [*one, *two]).equal


def test_too_many_devices_are_refused() -> None:
    many: Iterator[Entry] = (Opened(f"d{n}", 0.0) for n in range(9000))
    with pytest.raises(RecordingError, match="more than 4096 devices"):
        compared(many, [])


# --- the options that make recordings --------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "trace", "backend"),
    [
        ("blk --trace disk.img", "", "disk.img"),
        ("blk disk.img --trace --nbd s", "", "disk.img"),
        ("blk --trace=out disk.img", "out", "disk.img"),
        ("blk disk.img", None, "disk.img"),
        ("blk -- --trace", None, "--trace"),
    ],
)
def test_a_switch_takes_no_other_word_for_its_value(
    line: str, trace: str | None, backend: str
) -> None:
    options = cli.parse(TABLE, line.split()).options
    assert isinstance(options, BlkOptions)
    assert (options.trace, options.backend) == (trace, backend)


def test_both_files_are_written(folder: Path) -> None:
    with Tracing("lines", "recording", header_of_run("7.2", ["daemon", "-v"])) as tracing:
        assert tracing.tap is not None
        tracing.tap.on_open("d")
    lines = (folder / "lines").read_text().splitlines()
    assert lines[0].startswith("# vduse trace: daemon -v, on the embedded framework as kernel 7.2")
    assert lines[1].endswith("d open")
    with open(folder / "recording", "rb") as file:
        reader = Reader(file, "recording")
        assert [type(entry) for entry in reader] == [Opened]
        assert (reader.header.program, reader.cut) == (("daemon", "-v"), None)


def test_a_run_is_recorded_to_its_end(folder: Path) -> None:
    companion = TraceCompanion(None, "recording", "7.2", ("daemon",))
    assert companion.tap is not None
    companion.tap.on_open("d")
    companion.finish()
    with open(folder / "recording", "rb") as file:
        reader = Reader(file, "recording")
        assert [type(entry) for entry in reader] == [Opened]
    assert (reader.header.kernel, reader.header.program, reader.cut) == ("7.2", ("daemon",), None)


def test_without_the_options_there_is_no_tap() -> None:
    with Tracing(None, None, header_of_kernel()) as tracing:
        assert tracing.tap is None
        control: Any = object()
        assert tracing.tapped(control) is control


def test_headers_name_the_kernel_or_the_profile() -> None:
    kernel, embedded = header_of_kernel(), header_of_embedded("6.12")
    assert (kernel.framework, kernel.kernel, kernel.seen_by) == (
        *("kernel", os.uname().release, "device"),
    )
    assert (embedded.framework, embedded.kernel, embedded.seen_by) == (
        *("embedded", "6.12", "framework"),
    )


def test_a_file_with_other_contents_is_not_written_over(folder: Path) -> None:
    image = folder / "disk.img"
    image.write_bytes(b"precious")
    for trace, trace_json in (("disk.img", None), (None, "disk.img"), ("new", "disk.img")):
        with pytest.raises(UserError, match=r"disk\.img: it has contents that are no trace"):
            Tracing(trace, trace_json, HEADER)
    assert image.read_bytes() == b"precious"
    for _ in range(2):  # traces are
        Tracing("lines", "recording", HEADER).close()
    with pytest.raises(UserError, match="name the same file"):
        Tracing("lines", "./lines", HEADER)
    with pytest.raises(UserError, match="no/recording: no such file or folder"):
        Tracing(None, "no/recording", HEADER)


def test_a_pipe_is_waited_for(folder: Path) -> None:
    os.mkfifo("pipe")
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(Path("pipe").read_bytes()))
    thread.start()
    Tracing(None, "pipe", HEADER).close()
    thread.join()
    assert found[0].startswith(b'{"vduse-recording":1')


def test_a_position_that_differs_is_a_difference() -> None:
    def stop(state: bytes) -> list[Entry]:
        ask = Messaged("d", 1.0, DevRequest(0, GetVqState(0)))
        return [ask, Responded("d", 1.0, DevResponse(0, vq_state=state))]

    assert compared(stop(b"\1" * 8), stop(b"\1" * 8)).equal
    assert not compared(stop(b"\1" * 8), stop(b"\2" * 8)).equal
