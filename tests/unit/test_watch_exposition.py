"""Metrics, read by prometheus_client's own parsers."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from tests.rules.tree import ROOT
from tests.unit.watch_states import distribution, export, latency, node, queue, state
from vduse.daemon.watch.exposition import BUCKETS, Metrics, classic_buckets
from vduse.daemon.watch.state import State, WorkerState

_ACCEPT_OPEN = "application/openmetrics-text; version=1.0.0"


def samples(families: Iterable[Metric]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def scraped(of: State) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, content_type = Metrics(lambda: of).text("")
    assert content_type.startswith("text/plain; version=")
    return samples(prometheus(text.decode()))


_BUSY = state(
    export(
        'e"0\\',
        queue(
            0,
            requests=7,
            errors=2,
            bytes_read=4096,
            in_flight=3,
            oldest_in_flight_ns=1_500_000_000,
            latency_ns=latency(read=distribution((9_000, 4), (20_000_000, 1))),
        ),
        queue(1),
        taken_over=True,
    ),
    node("far", state="lost", why="gone", reconnections=3),
    node("near"),
    WorkerState(poll_found_ns=2 * 10**9, poll_vain_ns=10**9, sleeps=5),
)


def test_figures_are_the_states() -> None:
    found = scraped(_BUSY)
    first = (("export", 'e"0\\'), ("queue", "0"))
    assert found["vduse_read_bytes_total", first] == 4096
    assert found["vduse_request_errors_total", first] == 2
    assert found["vduse_requests_in_flight", first] == 3
    assert found["vduse_oldest_request_seconds", first] == 1.5
    reads = (*first, ("type", "read"))
    assert found["vduse_requests_total", reads] == 5
    assert found["vduse_request_duration_seconds_count", reads] == 5
    assert found["vduse_request_duration_seconds_sum", reads] == pytest.approx(0.020036)
    at = {le: found[_bucket(le)] for le in ("1e-05", "0.01", "0.025", "+Inf")}
    assert at == {"1e-05": 4, "0.01": 4, "0.025": 5, "+Inf": 5}
    assert found["vduse_export_takeovers_total", (("export", 'e"0\\'),)] == 1
    assert found["vduse_backend_connected", (("node", "far"),)] == 0
    assert found["vduse_backend_reconnections_total", (("node", "far"),)] == 3
    # What is on this host has no connection.
    assert ("vduse_backend_connected", (("node", "near"),)) not in found
    vain = (("result", "vain"), ("worker", "0"))
    assert found["vduse_worker_poll_seconds_total", vain] == 1
    assert found["process_open_fds", ()] > 0


def _bucket(le: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    labels = (("export", 'e"0\\'), ("le", le), ("queue", "0"), ("type", "read"))
    return "vduse_request_duration_seconds_bucket", labels


def test_openmetrics_has_the_same() -> None:
    text, content_type = Metrics(lambda: _BUSY).text(_ACCEPT_OPEN)
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name for family in open_metrics(text.decode())}
    assert {"vduse_requests", "vduse_request_duration_seconds"} <= families


def test_each_scrape_is_of_its_moment() -> None:
    states = [state(export("e0")), state(export("e1"))]
    metrics = Metrics(lambda: states.pop(0))
    first, second = (metrics.text("")[0].decode() for _ in range(2))
    assert 'export="e0"' in first and 'export="e1"' not in first
    assert 'export="e1"' in second and 'export="e0"' not in second


def test_buckets_are_cumulative_and_end_with_all() -> None:
    values = [(int(bound * 1e9) + off, 1) for bound in BUCKETS for off in (-1, 0, 1)]
    found = classic_buckets(distribution(*values))
    assert [count for _, count in found[:-1]] == [3 * at + 2 for at in range(len(BUCKETS))]
    assert found[-1] == ("+Inf", len(values))
    assert list(BUCKETS) == sorted(BUCKETS)


def test_the_page_lists_every_metric() -> None:
    told = set(re.findall(r"^\| `(vduse_\w+)", (ROOT / "docs/operating.md").read_text(), re.M))
    text, _ = Metrics(lambda: _BUSY).text("")
    made = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE")}
    assert told == {name for name in made if name.startswith("vduse_")}
