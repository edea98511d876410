//! What belongs to the process that made it: threads and locks do not survive a fork.

use pyo3::PyResult;
use pyo3::exceptions::PyRuntimeError;
use rustix::process::{Pid, getpid};

/// A value that a forked child can neither use nor destroy.
pub struct Home<T> {
    process: Pid,
    value: Option<T>,
}

impl<T> Home<T> {
    /// Belongs to this process.
    pub fn new(value: T) -> Home<T> {
        Home {
            process: getpid(),
            value: Some(value),
        }
    }

    /// RuntimeError in a forked child.
    pub fn get(&self) -> PyResult<&T> {
        let own = self.value.as_ref().filter(|_| self.process == getpid());
        own.ok_or_else(|| {
            PyRuntimeError::new_err("made before a fork: the child has to make its own")
        })
    }
}

impl<T> Drop for Home<T> {
    fn drop(&mut self) {
        if self.process != getpid() {
            // Its threads are not here, and a lock may be held by one of them for ever.
            std::mem::forget(self.value.take());
        }
    }
}
