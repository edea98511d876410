"""Recordings: what is written is read again; what is damaged is said; nobody waits for a file."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vduse import _native
from vduse.channel import line_writer
from vduse.channel.embedded import inherited
from vduse.channel.recorder import FileTap, recording_tap, text_tap
from vduse.channel.recording import (
    FORMAT,
    Counted,
    End,
    Entry,
    Header,
    Lost,
    Reader,
    RecordingError,
    decode,
    encode,
    encode_header,
)
from vduse.channel.tap import Called, Closed, Messaged, Opened, Recorder, Responded, tee
from vduse.channel.tapped import TappedControl
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    GetVqState,
    Ioctl,
    SetStatus,
    UnknownMessage,
    UpdateIotlb,
    pack_u32,
)
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework

HEADER = Header(
    version="0.1",
    started="2026-01-01T00:00:00.000+00:00",
    framework="embedded",
    kernel="7.2",
    seen_by="device",
    extensions=("callfd",),
    program=("disk daemon", "--verbose"),
)

ENTRIES: list[Entry] = [
    Opened("disk0", 0.5),
    Called(
        "", 0.5, Ioctl.CREATE_DEV, DevConfig("disk0", 1, 2, 1 << 33, 1, 4096).pack(), 0, 0, b"", 0
    ),
    Called("disk0", 0.25, Ioctl.VQ_SETUP_KICKFD, b"\1\0", 1, -22, b"", 0),
    Called("disk0", 0.25, 0xFFFFFFFF, b"", 0, 0, b"\xff", 2),
    Messaged("disk0", 1.0, DevRequest(7, SetStatus(0xF))),
    Messaged("disk0", 1.0, DevRequest(8, UpdateIotlb(1, 2**64 - 1, 3))),
    Messaged("disk0", 1.0, DevRequest(0xFFFFFFFF, UnknownMessage(0x99, bytes(range(128))))),
    Responded("disk0", 1.0, DevResponse(7, 1, 2, b"12345678", bytes(range(16)))),
    Responded("disk0", 1.0, b"short"),
    Closed("disk0", 2.0),
    Counted("disk0", 2.0, Ioctl.VQ_INJECT_IRQ, 0, 2**40),
    Lost(12),
    End(3.0),
]


def written(*entries: Entry) -> bytes:
    return encode_header(HEADER) + b"".join(encode(entry, 0.0) for entry in entries)


def read(data: bytes) -> tuple[Reader, list[Any]]:
    reader = Reader(io.BytesIO(data), "disk.trace")
    return reader, list(reader)


# --- the format ------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_an_entry_is_read_as_it_was_written(entry: Entry) -> None:
    assert decode(encode(entry, 0.0)) == entry


def test_a_recording_is_its_header_and_a_line_an_entry() -> None:
    reader, found = read(written(*ENTRIES))
    assert reader.header == HEADER
    assert found == ENTRIES[:-1]
    assert (reader.cut, reader.line) == (None, len(ENTRIES) + 1)


def test_the_keys_are_those_of_the_documentation() -> None:
    call = Called("disk0", 3.5, Ioctl.VQ_INJECT_IRQ, pack_u32(1), 0, -22, b"", 0)
    message = Messaged("disk0", 3.5, DevRequest(2, GetVqState(1)))
    response = Responded("disk0", 3.5, DevResponse(2))
    lines = [json.loads(encode(entry, 3.0)) for entry in (call, message, response)]
    assert lines == [
        {
            "event": "call",
            "time": 0.5,
            "device": "disk0",
            "name": "VQ_INJECT_IRQ",
            "nr": Ioctl.VQ_INJECT_IRQ,
            "payload": "01000000",
            "result": -22,
        },
        {
            "event": "message",
            "time": 0.5,
            "device": "disk0",
            "type": "GET_VQ_STATE",
            "id": 2,
            "data": DevRequest(2, GetVqState(1)).pack().hex(),
        },
        {
            "event": "response",
            "time": 0.5,
            "device": "disk0",
            "id": 2,
            "result": 0,
            "data": DevResponse(2).pack().hex(),
        },
    ]
    assert json.loads(encode_header(HEADER)) == {
        "vduse-recording": FORMAT,
        "version": "0.1",
        "started": "2026-01-01T00:00:00.000+00:00",
        "framework": "embedded",
        "kernel": "7.2",
        "seen_by": "device",
        "extensions": ["callfd"],
        "program": ["disk daemon", "--verbose"],
    }


def test_keys_of_a_later_writer_are_passed_over() -> None:
    assert decode(b'{"event":"open","time":1,"device":"d","colour":[{"red":1}]}\n') == Opened(
        "d", 1
    )


def test_a_name_that_is_no_text_is_written_all_the_same() -> None:
    name = os.fsdecode(b"disk\xff")
    _, [opened] = read(written(Opened(name, 0.0), End(0.0)))
    assert opened == Opened("disk\\udcff", 0.0)


# --- what is damaged -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no recording"),
        (b"\x7fELF", "no recording"),
        (b"[1, 2]\n", "no recording"),
        (b"[" * 100_000, "no recording"),
        (b'{"vduse-recording":"1"}\n', "no recording"),
        (b'{"vduse-recording":1}\n', "line 1: damaged: .*version"),
        (b'{"vduse-recording":2,"colour":1}\n', "format 2, and this vduse reads 1: use a newer"),
        (written(*ENTRIES).replace(b"device", b"evil", 1), "line 1: damaged"),
    ],
)
def test_what_is_no_recording_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RecordingError, match=f"disk.trace.*{message}"):
        read(data)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"event":"open"}\n',
        b'{"event":"explosion","time":1}\n',
        b'{"event":"open","time":-1}\n',
        b'{"event":"open","time":1e300}\n',
        b'{"event":"call","time":1,"nr":-1,"result":0}\n',
        b'{"event":"call","time":1,"nr":1,"result":99999999999}\n',
        b'{"event":"call","time":1,"nr":1,"result":0,"payload":"xy"}\n',
        b'{"event":"message","time":1,"data":"0102"}\n',
        b'{"event":"open","time":1,"device":"' + b"x" * (1 << 18) + b'"}\n',
    ],
    ids=lambda line: repr(line[:24]),
)
def test_a_damaged_line_is_named(line: bytes) -> None:
    entries = iter(Reader(io.BytesIO(written(Opened("d", 0.0)) + line), "disk.trace"))
    assert next(entries) == Opened("d", 0.0)
    with pytest.raises(RecordingError, match=r"disk\.trace, line 3: damaged"):
        next(entries)


def test_every_cut_of_a_recording_is_read_up_to_there() -> None:
    data = written(*ENTRIES)
    for length in range(data.index(b"\n") + 1, len(data)):
        reader, found = read(data[:length])
        assert found == ENTRIES[: len(found)]
        whole = data[:length].count(b"\n") - 1
        assert len(found) == whole
        assert reader.cut is not None
        assert ("in the middle" in reader.cut) == (data[length - 1 : length] != b"\n")


# --- writing ---------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def test_what_crosses_is_in_the_file_as_it_happens(pipe: tuple[int, int]) -> None:
    tap = recording_tap(pipe[1], "pipe", HEADER)
    with os.fdopen(os.dup(pipe[0]), "rb") as file:
        reader = Reader(file, "pipe")
        tap.on_open("disk0")
        entries = iter(reader)
        assert isinstance(next(entries), Opened)
        tap.on_message("disk0", DevRequest(1, SetStatus(0)).pack())
        assert isinstance(next(entries), Messaged)
        tap.close()
        assert list(entries) == []
        assert reader.cut is None


def test_lines_for_people(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    tap = text_tap(os.open(path, os.O_WRONLY | os.O_CREAT), "trace", HEADER)
    tap.on_open("disk0")
    tap.on_call("disk0", Ioctl.VQ_INJECT_IRQ, pack_u32(1), 0, -22, b"", 0)
    tap.on_message("disk0", DevRequest(4, SetStatus(0xB)).pack())
    tap.on_response("disk0", DevResponse(4).pack())
    tap.count("disk0", {(Ioctl.IOTLB_GET_FD, 22): 3})
    tap.on_close("\x1b[2Jdisk\n\udcff")
    tap.close()
    first, *lines = path.read_text().splitlines()
    assert first == (
        "# vduse trace: disk daemon --verbose, on the embedded framework as kernel 7.2, "
        "2026-01-01T00:00:00.000+00:00"
    )
    assert [line.lstrip("0123456789. ") for line in lines] == [
        "disk0 open",
        "disk0 VQ_INJECT_IRQ(1) = EINVAL",
        "disk0 <- #4 SET_STATUS 0xb FEATURES_OK",
        "disk0 -> #4 OK",
        "disk0 IOTLB_GET_FD = EINVAL, 3 times",
        "\\x1b[2Jdisk\\n\\udcff close",
        "end",
    ]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def flood(tap: FileTap, count: int) -> None:
    for _ in range(count):
        tap.on_call("disk0", Ioctl.VQ_INJECT_IRQ, pack_u32(0), 0, 0, b"", 0)


def test_a_full_disk_ends_the_recording_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    tap = recording_tap(os.open("/dev/full", os.O_WRONLY), "disk.trace", HEADER)
    flood(tap, 1000)
    tap.close()
    flood(tap, 1000)
    assert warnings(caplog) == [
        "disk.trace: No space left on device: nothing more is written there"
    ]


def test_a_reader_that_goes_ends_the_recording_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader, writer = os.pipe()
    tap = recording_tap(writer, "pipe", HEADER)
    os.read(reader, 1)
    os.close(reader)
    flood(tap, 1000)
    tap.close()
    assert warnings(caplog) == ["pipe: Broken pipe: nothing more is written there"]


def test_a_reader_that_stands_still_keeps_nobody_waiting_and_fills_no_memory(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "LIMIT", 1 << 16)
    tap = recording_tap(pipe[1], "pipe", HEADER)
    flood(tap, 20_000)  # some 2 MB: it returns
    with os.fdopen(os.dup(pipe[0]), "rb") as file:
        reader = Reader(file, "pipe")
        entries = iter(reader)
        seen, lost = 0, 0
        while seen + lost < 20_000:
            entry = next(entries)
            if isinstance(entry, Lost):
                lost += entry.count
            else:
                seen += 1
        assert lost
        # It goes on behind the gap.
        tap.on_close("disk0")
        assert isinstance(next(entries), Closed)
    tap.close()


def test_a_reader_that_stands_still_does_not_keep_the_end(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(line_writer, "_CLOSE_TIMEOUT", 0.05)
    tap = recording_tap(pipe[1], "pipe", HEADER)
    flood(tap, 2000)
    tap.close()
    assert warnings(caplog) == ["pipe is not read: the end of what was to be written is lost"]


def test_a_pipe_that_somebody_made_nonblocking_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    tap = recording_tap(pipe[1], "pipe", HEADER)
    flood(tap, 5000)
    with os.fdopen(os.dup(pipe[0]), "rb") as file:
        entries = iter(Reader(file, "pipe"))
        assert all(isinstance(next(entries), Called) for _ in range(5000))
    tap.close()


# --- on channels -----------------------------------------------------------------------------


def life(framework: Framework, wrap: Any = lambda control: control) -> None:
    """A device's, with a few requests."""
    control = wrap(inherited(framework.control()))
    backend = _native.Backend.memory(1 << 20)
    device = BlkDevice("disk0", backend)
    device.start(control)
    framework.dev_add("disk0")
    framework.disk("disk0").pwrite(bytes(4096), 0)
    framework.dev_del("disk0")
    device.close(destroy=True)
    control.close()
    backend.close()


def test_a_recording_is_what_a_recorder_saw(tmp_path: Path) -> None:
    path = tmp_path / "disk.trace"
    recorder = Recorder()
    tap = recording_tap(os.open(path, os.O_WRONLY | os.O_CREAT), str(path), HEADER)
    with Framework(tap=tee([None, recorder, tap])) as framework:
        life(framework)
    tap.close()
    with open(path, "rb") as file:
        found = list(Reader(file, str(path)))
    assert [entry.line() for entry in found] == recorder.lines()
    assert len(found) > 20


def test_a_full_disk_does_not_disturb_the_device(caplog: pytest.LogCaptureFixture) -> None:
    tap = recording_tap(os.open("/dev/full", os.O_WRONLY), "disk.trace", HEADER)
    with Framework(tap=tap) as framework:
        life(framework)
    tap.close()
    assert len(warnings(caplog)) == 1


def test_a_devices_side_tells_its_data_path_in_numbers(tmp_path: Path) -> None:
    path = tmp_path / "disk.trace"
    tap = recording_tap(os.open(path, os.O_WRONLY | os.O_CREAT), str(path), HEADER)
    with Framework() as framework:
        life(framework, lambda control: TappedControl(control, tap, tap.count))
    tap.close()
    with open(path, "rb") as file:
        counted = [entry for entry in Reader(file, str(path)) if isinstance(entry, Counted)]
    assert [(c.device, c.nr, c.result) for c in counted] == [("disk0", Ioctl.IOTLB_GET_FD, 0)]
    assert counted[0].count >= 2


def test_tee_of_none_is_none() -> None:
    recorder = Recorder()
    assert tee([None, None]) is None
    assert tee([None, recorder]) is recorder
    two = tee([recorder, recorder])
    assert two is not None
    start = time.monotonic()
    two.on_open("disk0")
    two.on_close("disk0")
    assert recorder.lines() == ["disk0 open", "disk0 open", "disk0 close", "disk0 close"]
    assert all(record.time >= start for record in recorder.records)
