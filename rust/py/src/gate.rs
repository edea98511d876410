//! Calls of Python on threads that are not Python's: counted, so that an end can wait for them
//! and let none begin after it. The interpreter would end a thread that takes the GIL during its
//! finalization in the midst of our frames.

use crate::datapath::seconds;
use crate::fork;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long the interpreter's end waits for calls that are under way.
const LAST_CALL: Duration = Duration::from_secs(2);

/// What all calls of Python by workers go through.
static INTERPRETER: Gate = Gate::new();

/// Calls that are under way, and whether more may come.
pub struct Gate {
    calls: AtomicUsize,
    is_shut: AtomicBool,
    /// Held by none but who shuts the gate and who leaves it shut: a fork copies it free.
    wait: Mutex<()>,
    idle: Condvar,
}

impl Gate {
    /// Open.
    pub const fn new() -> Gate {
        Gate {
            calls: AtomicUsize::new(0),
            is_shut: AtomicBool::new(false),
            wait: Mutex::new(()),
            idle: Condvar::new(),
        }
    }

    /// Begins a call, unless the gate is shut.
    pub fn enter(&self) -> Option<Entered<'_>> {
        self.calls.fetch_add(1, SeqCst);
        let entered = Entered {
            gate: self,
            generation: fork::generation(),
        };
        // Counted first: whoever shuts the gate now sees the call, or the call sees it shut.
        (!self.is_shut.load(SeqCst)).then_some(entered)
    }

    /// No call begins any more; true once none is under way, false if one still is after
    /// `timeout`.
    pub fn shut(&self, timeout: Duration) -> bool {
        self.is_shut.store(true, SeqCst);
        let wait = self.wait.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = |_: &mut ()| self.calls.load(SeqCst) > 0;
        let waited = self.idle.wait_timeout_while(wait, timeout, under_way);
        drop(waited);
        self.calls.load(SeqCst) == 0
    }

    /// In a forked child: the threads that were inside do not exist here.
    fn forget_calls(&self) {
        self.calls.store(0, SeqCst);
    }
}

/// A call under way.
pub struct Entered<'a> {
    gate: &'a Gate,
    generation: u32,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.generation != fork::generation() {
            return; // begun by the parent, not counted here
        }
        if self.gate.calls.fetch_sub(1, SeqCst) == 1 && self.gate.is_shut.load(SeqCst) {
            let wait = self.gate.wait.lock();
            self.gate.idle.notify_all();
            drop(wait);
        }
    }
}

/// Does something in Python, on any thread; `None` once the interpreter is about to end.
pub fn attach<T>(what: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let _entered = INTERPRETER.enter()?;
    Python::try_attach(what)
}

/// In a forked child.
pub fn after_fork() {
    INTERPRETER.forget_calls();
}

#[pyfunction]
fn end_calls(py: Python<'_>, timeout: f64) -> PyResult<bool> {
    let timeout = seconds(timeout)?;
    Ok(py.detach(|| INTERPRETER.shut(timeout)))
}

/// Adds the function to the module, and has Python call it at its end.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(end_calls, m)?)?;
    let arguments = (m.getattr("end_calls")?, LAST_CALL.as_secs_f64());
    m.py()
        .import("atexit")?
        .call_method1("register", arguments)?;
    Ok(())
}
