"""`vduse top`: rates between two looks, and how they are shown."""

from __future__ import annotations

from tests.unit.watch_states import NOW, distribution, export, latency, node, queue, state
from vduse.daemon.watch.state import WorkerState
from vduse.daemon.watch.top.rates import between, percentile
from vduse.daemon.watch.top.view import lines, styled

_FORMER = queue(requests=10, bytes_read=4096, latency_ns=latency(read=distribution((1000, 10))))
_LATTER = queue(
    requests=30,
    bytes_read=12288,
    bytes_written=512,
    errors=1,
    in_flight=4,
    latency_ns=latency(
        read=distribution((1000, 15), (9000, 5)),
        write=distribution((2000, 9)),
        other=distribution((2000, 1)),
    ),
)


def test_rates_are_of_the_time_between_the_looks() -> None:
    worker = {"poll_found_ns": 0, "sleeps": 0}
    frame = between(
        state(export("e0", _FORMER), WorkerState(poll_vain_ns=0, **worker)),
        state(
            export("e0", _LATTER),
            WorkerState(poll_vain_ns=10**9, **worker),
            time=NOW + 2,
            cpu_seconds=1.0,
        ),
    )
    [found] = frame.exports
    assert (found.reads, found.writes, found.others, found.errors) == (5, 4.5, 0.5, 0.5)
    assert (found.bytes_read, found.bytes_written) == (4096, 256)
    # 10 reads more: 5 of 1 us, 5 of 9 us; 10 others of 2 us.
    assert (found.p50_ns, found.p99_ns, found.in_flight) == (2000, 9000, 4)
    assert (frame.seconds, frame.cpu, frame.polling) == (2, 0.5, 0.5)


def test_another_daemon_and_another_export_count_from_nothing() -> None:
    former = state(export("e0", _LATTER))
    for now in (
        state(export("e0", _FORMER), time=NOW + 1),
        state(export("e0", _FORMER), time=NOW + 1, pid=2, started=NOW),
    ):
        [found] = between(former, now).exports
        assert (found.reads, found.writes) == (10, 0)


def test_percentiles_of_nothing_and_of_one_value() -> None:
    assert percentile({}, 0.5) == 0
    assert percentile({700: 1}, 0.5) == percentile({700: 1}, 0.99) == 700
    assert percentile({1: 99, 50: 1}, 0.99) == 1
    assert percentile({1: 98, 50: 2}, 0.99) == 50


def test_trouble_comes_first_then_who_is_busy() -> None:
    names = ("idle", "busy", "lost", "broken")
    former = state(*(export(name, queue()) for name in names), node())
    frame = between(
        former,
        state(
            export("idle", queue()),
            export("busy", _LATTER),
            export("lost", queue(), node_name="far"),
            export("broken", queue(), broken="why"),
            node(),
            node("far", state="lost", why="no route to host"),
            time=NOW + 1,
        ),
    )
    shown = [line.text for line in lines(frame)]
    assert [line.split()[0] for line in shown[3:7]] == ["broken", "lost", "busy", "idle"]
    assert shown[7:] == [
        "broken: serves nothing: why",
        "lost: connection of far lost: no route to host",
    ]
    assert "vduse 1.2.3, pid 1, up 1 min 41 s" in shown[0]
    assert styled(frame).plain.splitlines() == shown


def test_a_daemon_without_exports_is_said_to_have_none() -> None:
    frame = between(state(), state(time=NOW + 1))
    assert [line.text for line in lines(frame)][-1] == "no exports"
