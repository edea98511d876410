"""What is well and what is not, from a daemon's state."""

from __future__ import annotations

import pytest

from tests.unit.watch_states import export, node, queue, state
from vduse.daemon.watch.health import judge
from vduse.daemon.watch.spans import latency, span


def test_a_daemon_that_serves_is_well() -> None:
    busy = queue(in_flight=128, oldest_in_flight_ns=29 * 10**9)
    health = judge(state(export("e0", busy), node(state="connected")), stuck_after=30)
    assert (health.status, health.troubles, health.exports) == ("ok", (), 1)
    assert health.uptime == 100


def test_a_lost_connection_is_told_with_its_reason_and_its_time() -> None:
    lost = node("remote", state="lost", why="connection reset by peer")
    health = judge(state(export(), lost), stuck_after=30)
    [trouble] = health.troubles
    assert (health.status, trouble.kind, trouble.subject) == ("degraded", "connection", "remote")
    assert trouble.text == "node remote (nbd): connection lost for 12 s: connection reset by peer"


def test_a_broken_device_is_told() -> None:
    health = judge(state(export("e0", broken="virtqueue 0: out of reach")), stuck_after=30)
    [trouble] = health.troubles
    assert trouble.kind == "broken"
    assert "device e0 serves nothing: virtqueue 0: out of reach" in trouble.text


def test_each_virtqueue_with_a_stuck_request_is_told() -> None:
    stuck = queue(1, in_flight=3, oldest_in_flight_ns=90 * 10**9)
    well = queue(0, in_flight=3, oldest_in_flight_ns=10**9)
    health = judge(state(export("e0", well, stuck)), stuck_after=30)
    [trouble] = health.troubles
    assert trouble.kind == "stuck"
    assert "virtqueue 1: 3 in flight, the oldest for 1 min 30 s" in trouble.text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_spans(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize(
    ("nanoseconds", "words"),
    [
        (950, "950 ns"),
        (12_345, "12.3 us"),
        (123_456, "123 us"),
        (4_560_000, "4.56 ms"),
        (1.2e9, "1.20 s"),
        (75e9, "75.0 s"),
    ],
)
def test_latencies(nanoseconds: float, words: str) -> None:
    assert latency(nanoseconds) == words
