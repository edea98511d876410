//! Binding of the layers; see `_native.pyi` for what each promises.

use crate::device::Backend;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use vduse_device::layers::{Delay, Layer, Layered, OpKind, Pause, ReadOnly};

/// `layer` on `below`.
fn on(below: &Bound<'_, Backend>, layer: impl Layer + 'static) -> PyResult<Backend> {
    Backend::on(below, |backend| Arc::new(Layered::new(backend, layer)))
}

#[pyfunction]
fn layer_read_only(below: &Bound<'_, Backend>) -> PyResult<Backend> {
    on(below, ReadOnly)
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
    m.add_function(wrap_pyfunction!(layer_read_only, m)?)?;
    m.add_function(wrap_pyfunction!(layer_delay, m)?)
}
