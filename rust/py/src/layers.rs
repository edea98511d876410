//! Binding of the layers; see `_native.pyi` for what each promises.

use crate::device::Backend;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use vduse_device::layers::{
    Delay, ErrorLayer, Layer, Layered, Limits, OpKind, OpKinds, Overlay, Pause, Rate, ReadOnly,
    Rule, RuleId, ThrottleLayer,
};
use vduse_device::{Extent, Length, Offset};

/// `layer` on `below`.
fn on(below: &Bound<'_, Backend>, layer: impl Layer + 'static) -> PyResult<Backend> {
    Backend::on(below, |backend| Arc::new(Layered::new(backend, layer)))
}

#[pyfunction]
fn layer_read_only(below: &Bound<'_, Backend>) -> PyResult<Backend> {
    on(below, ReadOnly)
}

#[pyfunction]
fn layer_overlay(below: &Bound<'_, Backend>) -> PyResult<Backend> {
    on(below, Overlay::default())
}

#[pyfunction]
#[pyo3(signature = (below, pauses, seed = 0))]
fn layer_delay(
    below: &Bound<'_, Backend>,
    pauses: HashMap<String, (f64, f64)>,
    seed: u64,
) -> PyResult<Backend> {
    let mut each = [Pause::default(); OpKind::ALL.len()];
    for (name, (least, most)) in pauses {
        let pause = Pause {
            least: seconds(least)?,
            most: seconds(most)?,
        };
        if pause.least > pause.most {
            let words = format!("a delay from {least} to {most} seconds: the longer comes second");
            return Err(PyValueError::new_err(words));
        }
        each[kind(&name)? as usize] = pause;
    }
    on(below, Delay::new(each, seed))
}

/// Rules of the error layer; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct Faults(Arc<vduse_device::layers::Faults>);

#[pymethods]
impl Faults {
    #[new]
    #[pyo3(signature = (seed = 0))]
    fn new(seed: u64) -> Faults {
        Faults(Arc::new(vduse_device::layers::Faults::new(seed)))
    }

    fn add(
        &self,
        ops: Vec<String>,
        range: Option<(u64, u64)>,
        errno: i32,
        rate: f64,
        after: u64,
        count: Option<u64>,
    ) -> PyResult<RuleId> {
        let kinds = ops.iter().map(|name| kind(name));
        let rule = Rule {
            kinds: kinds.collect::<PyResult<OpKinds>>()?,
            range: range.map(extent).transpose()?,
            errno: parse_errno(errno)?,
            after,
            rate: share(rate)?,
            count,
        };
        Ok(self.0.add(rule))
    }

    fn clear(&self) {
        self.0.clear();
    }

    fn hits(&self) -> Vec<u64> {
        self.0.hits()
    }
}

#[pyfunction]
fn layer_error(below: &Bound<'_, Backend>, faults: &Faults) -> PyResult<Backend> {
    on(below, ErrorLayer::new(faults.0.clone()))
}

/// Limits of the throttle layer; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct Throttle(Arc<vduse_device::layers::Throttle>);

#[pymethods]
impl Throttle {
    #[new]
    fn new(limits: HashMap<String, f64>) -> PyResult<Throttle> {
        let limits = parse_limits(&limits)?;
        Ok(Throttle(vduse_device::layers::Throttle::new(limits)))
    }

    fn set_limits(&self, limits: HashMap<String, f64>) -> PyResult<()> {
        self.0.set_limits(parse_limits(&limits)?);
        Ok(())
    }
}

#[pyfunction]
#[pyo3(signature = (below, throttle, *, shared = false))]
fn layer_throttle(
    below: &Bound<'_, Backend>,
    throttle: &Throttle,
    shared: bool,
) -> PyResult<Backend> {
    let layer = ThrottleLayer::new(throttle.0.clone());
    match shared {
        true => below
            .get()
            .beside(|backend| Arc::new(Layered::shared(backend, layer))),
        false => on(below, layer),
    }
}

fn parse_limits(given: &HashMap<String, f64>) -> PyResult<Limits> {
    let mut limits = Limits::default();
    for (name, &value) in given {
        if !(value.is_finite() && value > 0.0) {
            let words = format!("{name}: {value} is not a number above 0");
            return Err(PyValueError::new_err(words));
        }
        if name == "iops_size" {
            if value < 1.0 {
                let words = format!("iops_size: {value} is less than a byte");
                return Err(PyValueError::new_err(words));
            }
            limits.iops_size = Some(value as u64);
            continue;
        }
        let (rate, is_burst) = match name.strip_suffix("_max") {
            Some(rate) => (rate, true),
            None => (name.as_str(), false),
        };
        let slot = match rate {
            "iops_total" => &mut limits.iops.total,
            "iops_read" => &mut limits.iops.read,
            "iops_write" => &mut limits.iops.write,
            "bps_total" => &mut limits.bps.total,
            "bps_read" => &mut limits.bps.read,
            "bps_write" => &mut limits.bps.write,
            _ => return Err(PyValueError::new_err(format!("no such limit: {name}"))),
        };
        if !is_burst {
            let burst = given.get(&format!("{rate}_max")).copied();
            *slot = Some(Rate {
                per_second: value,
                burst,
            });
        } else if given.get(rate).is_none_or(|&rate| rate > value) {
            let words = format!("{name}: needs {rate}, and not to be below it");
            return Err(PyValueError::new_err(words));
        }
    }
    Ok(limits)
}

fn extent((offset, length): (u64, u64)) -> PyResult<Extent> {
    match Extent::new(Offset(offset), Length(length)) {
        Some(extent) if !extent.is_empty() => Ok(extent),
        _ => Err(PyValueError::new_err(format!(
            "a range of {length} bytes at {offset}: empty, or past 2^64"
        ))),
    }
}

fn parse_errno(number: i32) -> PyResult<Errno> {
    if !(1..4096).contains(&number) {
        return Err(PyValueError::new_err(format!("{number} is no errno")));
    }
    Ok(Errno::from_raw_os_error(number))
}

fn share(rate: f64) -> PyResult<f64> {
    if !(0.0..=1.0).contains(&rate) {
        let words = format!("a rate of {rate}: not between 0 and 1");
        return Err(PyValueError::new_err(words));
    }
    Ok(rate)
}

fn kind(name: &str) -> PyResult<OpKind> {
    OpKind::parse(name).ok_or_else(|| {
        let names = OpKind::ALL.map(OpKind::name).join(", ");
        PyValueError::new_err(format!("operation {name:?} is none of {names}"))
    })
}

/// Longer delays are nobody's wish, and must not overflow a clock.
const LONGEST: f64 = 1e6;

fn seconds(value: f64) -> PyResult<Duration> {
    if !(0.0..=LONGEST).contains(&value) {
        let words = format!("{value} seconds: not between 0 and {LONGEST}");
        return Err(PyValueError::new_err(words));
    }
    Ok(Duration::from_secs_f64(value))
}

/// Adds the layers to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Faults>()?;
    m.add_class::<Throttle>()?;
    m.add_function(wrap_pyfunction!(layer_throttle, m)?)?;
    m.add_function(wrap_pyfunction!(layer_error, m)?)?;
    m.add_function(wrap_pyfunction!(layer_overlay, m)?)?;
    m.add_function(wrap_pyfunction!(layer_read_only, m)?)?;
    m.add_function(wrap_pyfunction!(layer_delay, m)?)
}
