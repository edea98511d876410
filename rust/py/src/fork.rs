//! Fork: what has threads, locks or shared memory belongs to the process that made it.

use pyo3::PyResult;
use pyo3::exceptions::PyRuntimeError;
use std::process;

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
