//! Fork: what has threads, locks or shared memory belongs to the process that made it.

use crate::gate;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::IntoPyDict;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How often this process's ancestors forked: cheaper to look at than the process id.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// The same number as long as nobody has forked in between.
pub fn generation() -> u32 {
    GENERATION.load(Relaxed)
}

/// Python has forked, and this is the child.
#[pyfunction]
fn after_fork() {
    GENERATION.fetch_add(1, Relaxed);
    gate::after_fork();
}

/// Has Python tell of its forks.
pub fn watch(py: Python<'_>) -> PyResult<()> {
    let module = PyModule::new(py, "fork")?;
    let after_fork = wrap_pyfunction!(after_fork, &module)?;
    let arguments = [("after_in_child", after_fork)].into_py_dict(py)?;
    py.import("os")?
        .call_method("register_at_fork", (), Some(&arguments))?;
    Ok(())
}

/// A value that only the process which made it may use. A forked child gets a RuntimeError, and
/// drops nothing: the parent still uses it, and a lock in it may be held for ever.
pub struct PerProcess<T> {
    /// `None` only while dropping.
    value: Option<T>,
    pid: u32,
}

impl<T> PerProcess<T> {
    /// Belongs to this process.
    pub fn new(value: T) -> PerProcess<T> {
        PerProcess {
            value: Some(value),
            pid: process::id(),
        }
    }

    /// The value; RuntimeError in a forked child.
    pub fn get(&self) -> PyResult<&T> {
        match &self.value {
            Some(value) if self.pid == process::id() => Ok(value),
            _ => Err(PyRuntimeError::new_err(format!(
                "made by process {}: it cannot be used after a fork",
                self.pid
            ))),
        }
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        if self.pid != process::id() {
            std::mem::forget(self.value.take());
        }
    }
}

/// As [`PerProcess`], for what is made once a request: forks are noticed that Python was told of.
pub struct PerRequest<T> {
    /// `None` only while dropping.
    value: Option<T>,
    generation: u32,
}

impl<T> PerRequest<T> {
    /// Belongs to this process.
    pub fn new(value: T) -> PerRequest<T> {
        PerRequest {
            value: Some(value),
            generation: generation(),
        }
    }

    /// The value; RuntimeError in a forked child.
    pub fn get(&self) -> PyResult<&T> {
        match &self.value {
            Some(value) if self.generation == generation() => Ok(value),
            _ => Err(PyRuntimeError::new_err(
                "made by another process: it cannot be used after a fork",
            )),
        }
    }

    /// The value, for good; `None` in a forked child.
    pub fn take(&mut self) -> Option<T> {
        let value = self.value.take();
        if self.generation == generation() {
            return value;
        }
        std::mem::forget(value);
        None
    }
}

impl<T> Drop for PerRequest<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}
