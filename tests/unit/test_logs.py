"""The log: one record a line, as text and as JSON, and bounded where others cause lines."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from vduse.daemon import logs

log = logging.getLogger("vduse.storage.test_logs")


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with logs.put_back():
        logs.setup(0)
        yield stream


def test_text_is_a_line_a_record_whatever_another_side_says(stderr: io.StringIO) -> None:
    log.warning("a client was refused: %s", "no export 'x\nvduse: error: forged\x1b[2J\x9b'")
    assert stderr.getvalue() == (
        "vduse: warning: storage.test logs: a client was refused: "
        "no export 'x\\nvduse: error: forged\\x1b[2J\\x9b'\n"
    )


def test_a_traceback_stays_readable_as_text(stderr: io.StringIO) -> None:
    log.error("a batch failed\n%s", "Traceback")
    assert stderr.getvalue().endswith("a batch failed\nTraceback\n")


def test_json_is_an_object_a_line_with_what_it_is_about(stderr: io.StringIO) -> None:
    logs.adjust(format="json", level="info")
    log.info("%s: ends\n\u2028\x00", "e0", extra={"export": "e0", "node": "disk0"})
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.exception("failed", extra={"device": "vduse0"})
    log.debug("not shown")
    first, second = (json.loads(line) for line in stderr.getvalue().splitlines())
    time = first.pop("time")
    assert len(time) == len("2026-11-23T00:00:00.000Z") and time.endswith("Z")
    assert first == {
        "level": "info",
        "source": "storage.test_logs",
        "message": "e0: ends\n\u2028\x00",
        "export": "e0",
        "node": "disk0",
    }
    assert (second["level"], second["device"]) == ("error", "vduse0")
    assert second["exception"].startswith("Traceback") and "ValueError: a\nb" in second["exception"]


def test_levels_hold_back_what_is_below(stderr: io.StringIO) -> None:
    logs.adjust(format="text", level="error")
    log.warning("not shown")
    log.error("shown")
    assert stderr.getvalue().splitlines() == ["vduse: error: storage.test logs: shown"]


def test_lines_of_one_kind_are_bounded_and_the_rest_is_counted() -> None:
    now = 0.0
    bounded = logs.Bounded(lambda: now)

    def admit(line: int = 1, **about: str) -> int | None:
        record = logging.makeLogRecord({"name": "vduse.x", "lineno": line, **about})
        return bounded.admit(record)

    first = [admit(device="a") for _ in range(logs.MOST_ALIKE + 5)]
    assert first == [0] * logs.MOST_ALIKE + [None] * 5
    assert (admit(device="b"), admit(line=2, device="a")) == (0, 0)
    now = logs.PAUSE
    assert [admit(device="a") for _ in range(2)] == [5, 0]


def test_no_number_of_kinds_takes_more_memory() -> None:
    bounded = logs.Bounded(lambda: 0.0)
    for device in range(10_000):
        record = logging.makeLogRecord({"name": "vduse.x", "lineno": 1, "device": str(device)})
        assert bounded.admit(record) == 0
    assert len(bounded._kinds) < 2000


def test_a_flood_is_cut_and_who_debugs_sees_all(stderr: io.StringIO) -> None:
    for _ in range(100):
        log.warning("refused")
    assert len(stderr.getvalue().splitlines()) == logs.MOST_ALIKE
    logs.adjust(format="text", level="debug")
    for _ in range(100):
        log.warning("refused")
    assert len(stderr.getvalue().splitlines()) == logs.MOST_ALIKE + 100
