//! Statistics as Python sees them: plain dicts that JSON can say; docs/statistics.md has every
//! field.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::time::UNIX_EPOCH;
use vduse_device::QueueStats;
use vduse_device::backend::{Connection, ConnectionState};
use vduse_framework::blk::BlkStats;
use vduse_histogram::Counts;
use vduse_ring::SpinStats;

/// Percentiles and the maximum.
pub fn percentiles<'py>(py: Python<'py>, counts: &Counts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, per_million) in [
        ("p50", 500_000),
        ("p90", 900_000),
        ("p99", 990_000),
        ("p99.9", 999_000),
    ] {
        dict.set_item(name, counts.percentile(per_million))?;
    }
    dict.set_item("max", counts.max)?;
    Ok(dict)
}

fn histogram<'py>(py: Python<'py>, counts: &Counts) -> PyResult<Bound<'py, PyDict>> {
    let dict = percentiles(py, counts)?;
    dict.set_item("count", counts.total())?;
    dict.set_item("sum", counts.sum)?;
    let buckets = counts.buckets.iter().map(|(bound, count)| [*bound, *count]);
    dict.set_item("buckets", buckets.collect::<Vec<_>>())?;
    Ok(dict)
}

/// One worker thread.
pub fn worker<'py>(py: Python<'py>, stats: &SpinStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("poll_found_ns", stats.found_ns)?;
    dict.set_item("poll_vain_ns", stats.vain_ns)?;
    dict.set_item("sleeps", stats.sleeps)?;
    Ok(dict)
}

/// A backend's connection.
pub fn connection<'py>(py: Python<'py>, now: &ConnectionState) -> PyResult<Bound<'py, PyDict>> {
    let (state, why) = match &now.connection {
        Connection::Local => ("local", ""),
        Connection::Connected => ("connected", ""),
        Connection::Lost(why) => ("lost", why.as_str()),
    };
    let since = now.since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let dict = PyDict::new(py);
    dict.set_item("state", state)?;
    dict.set_item("why", why)?;
    dict.set_item("since", since.as_secs_f64())?;
    dict.set_item("reconnections", now.reconnections)?;
    Ok(dict)
}

/// One virtqueue on its device's side, or all of them.
pub fn device<'py>(py: Python<'py>, stats: &QueueStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in stats.counts.items() {
        dict.set_item(name, value)?;
    }
    let oldest = u64::try_from(stats.oldest.as_nanos()).unwrap_or(u64::MAX);
    dict.set_item("oldest_in_flight_ns", oldest)?;
    let found = &stats.distributions;
    let latency = PyDict::new(py);
    latency.set_item("read", histogram(py, &found.read)?)?;
    latency.set_item("write", histogram(py, &found.write)?)?;
    latency.set_item("flush", histogram(py, &found.flush)?)?;
    latency.set_item("discard", histogram(py, &found.discard)?)?;
    latency.set_item("other", histogram(py, &found.other)?)?;
    dict.set_item("latency_ns", latency)?;
    dict.set_item("batch_requests", histogram(py, &found.batch_requests)?)?;
    Ok(dict)
}

/// One virtqueue on its driver's side, or all of them.
pub fn driver<'py>(
    py: Python<'py>,
    stats: BlkStats,
    batch_requests: &Counts,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in [
        ("requests", stats.requests),
        ("bytes_read", stats.bytes_read),
        ("bytes_written", stats.bytes_written),
        ("errors", stats.errors),
        ("kicks", stats.kicks),
        ("kicks_suppressed", stats.kicks_suppressed),
        ("irqs", stats.irqs),
    ] {
        dict.set_item(name, value)?;
    }
    dict.set_item("batch_requests", histogram(py, batch_requests)?)?;
    Ok(dict)
}
