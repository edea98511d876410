//! The Python side of a disk: what is called, how often at once, and what became of it.

use super::batch::{Batch, Kind};
use super::exporter::{IoBatch, IoRequest, is_shared, view};
use super::lender::{Lender, call};
use super::registry::Registry;
use crate::gate::{self, Entered, Gate};
use pyo3::exceptions::{PyOSError, PyTypeError};
use pyo3::prelude::*;
use pyo3::pyclass::{PyTraverseError, PyVisit};
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vduse_device::backend::Observers;

/// How long a disk's end waits for a call that is under way.
const LAST_CALL: Duration = Duration::from_secs(5);

/// What is called.
enum Calls {
    /// `submit(batch)`.
    Batch(Py<PyAny>),
    /// A method an operation.
    Each {
        read: Py<PyAny>,
        write: Py<PyAny>,
        flush: Py<PyAny>,
        discard: Py<PyAny>,
        write_zeroes: Py<PyAny>,
    },
}

/// The Python object that serves.
pub(super) struct Handler {
    calls: Calls,
    /// `report(message, exception or None)`: writes to the log.
    report: Py<PyAny>,
    /// `closed()`: after the last request.
    closed: Py<PyAny>,
}

impl Handler {
    pub(super) fn new(
        object: &Bound<'_, PyAny>,
        report: Py<PyAny>,
        closed: Py<PyAny>,
        batches: bool,
    ) -> PyResult<Handler> {
        let method = |name| object.getattr(name).map(Bound::unbind);
        let calls = match batches {
            true => Calls::Batch(method("submit")?),
            false => Calls::Each {
                read: method("read")?,
                write: method("write")?,
                flush: method("flush")?,
                discard: method("discard")?,
                write_zeroes: method("write_zeroes")?,
            },
        };
        Ok(Handler {
            calls,
            report,
            closed,
        })
    }

    /// Hands a batch over.
    fn call(&self, py: Python<'_>, shared: &Shared, batch: &Arc<Batch>) {
        match &self.calls {
            Calls::Batch(submit) => self.call_once(py, submit, shared, batch),
            Calls::Each { .. } => self.call_each(py, shared, batch),
        }
    }

    fn call_once(&self, py: Python<'_>, submit: &Py<PyAny>, shared: &Shared, batch: &Arc<Batch>) {
        let object = match Bound::new(py, IoBatch::new(batch.clone())) {
            Ok(object) => object,
            Err(error) => {
                batch.complete_all(Err(Errno::IO));
                return self.report_error(py, shared, "no batch object", error);
            }
        };
        if let Err(error) = submit.bind(py).call1((&object,)) {
            // First the log, which lets go of the views in the traceback's frames.
            let open = batch.open();
            let words = format!("submit raised; {open} of {} requests fail", batch.len());
            self.report_error(py, shared, &words, error);
            IoBatch::complete_all(py, batch, Err(Errno::IO));
        }
    }

    fn call_each(&self, py: Python<'_>, shared: &Shared, batch: &Arc<Batch>) {
        let mut faults = 0;
        // As the batch object would: a view that is gone does not drop its request.
        batch.hold();
        let mut lender = Lender::new(py, batch);
        for index in 0..batch.len() {
            let result = match self.call_one(py, batch, index, &mut lender) {
                Ok(()) => Ok(()),
                Err(error) => Err(match errno_of(py, &error) {
                    Some(errno) => errno,
                    None => {
                        faults += 1;
                        if faults == 1 {
                            self.report_error(py, shared, &describe(batch, index), error);
                        }
                        Errno::IO
                    }
                }),
            };
            lender.end(index, result);
        }
        drop(lender);
        batch.let_go();
        if faults > 1 {
            let words = format!("{} more requests of that batch raised", faults - 1);
            shared.counts.exceptions.fetch_add(faults - 1, Relaxed);
            self.report(py, &words, None);
        }
    }

    /// Carries one operation out by its method; its view is released when that returns.
    fn call_one<'py>(
        &self,
        py: Python<'py>,
        batch: &Arc<Batch>,
        index: usize,
        lender: &mut Lender<'py, '_>,
    ) -> PyResult<()> {
        let Calls::Each {
            read,
            write,
            flush,
            discard,
            write_zeroes,
        } = &self.calls
        else {
            return Ok(());
        };
        let facts = batch.facts[index];
        match facts.kind {
            Kind::Read | Kind::Write => {
                let memory = match lender.view(index)? {
                    Some(memory) => memory,
                    None => view(py, batch, index)?,
                };
                let method = if facts.kind == Kind::Read {
                    read
                } else {
                    write
                };
                let outcome = call(method.bind(py), facts.offset, &memory);
                if is_shared(memory.as_any()) {
                    // Kept by somebody: they find it released. BufferError: something stands on
                    // it, which the batch reports.
                    let _ = memory.call_method0(pyo3::intern!(py, "release"));
                }
                nothing(&outcome?)
            }
            Kind::Flush => nothing(&flush.bind(py).call0()?),
            Kind::Discard => nothing(&discard.bind(py).call1((facts.offset, facts.length))?),
            Kind::WriteZeroes => {
                let arguments = (facts.offset, facts.length, facts.may_unmap);
                nothing(&write_zeroes.bind(py).call1(arguments)?)
            }
        }
    }

    fn report_error(&self, py: Python<'_>, shared: &Shared, words: &str, error: PyErr) {
        shared.counts.exceptions.fetch_add(1, Relaxed);
        self.report(py, words, Some(error));
    }

    fn report(&self, py: Python<'_>, words: &str, error: Option<PyErr>) {
        let error = error.map(|error| error.into_value(py));
        // A log that fails has nobody to tell.
        let _ = self.report.bind(py).call1((words, error));
    }
}

/// Methods return None. Whoever returns bytes has not filled the buffer, whoever returns a number
/// may have done a part, and a coroutine or a generator has not run.
fn nothing(outcome: &Bound<'_, PyAny>) -> PyResult<()> {
    if outcome.is_none() {
        return Ok(());
    }
    let kind = outcome.get_type().name()?;
    Err(PyTypeError::new_err(format!(
        "the method returned {kind}, not None: read fills its buffer, and a coroutine needs async def"
    )))
}

/// What a request was, for the log.
fn describe(batch: &Batch, index: usize) -> String {
    let facts = batch.facts[index];
    let name = IoRequest::name(facts.kind);
    match facts.kind {
        Kind::Flush => format!("{name}() raised; the request fails"),
        _ => format!(
            "{name} of {} bytes at {} raised; the request fails",
            facts.length, facts.offset
        ),
    }
}

/// The errno of an OSError that has one.
fn errno_of(py: Python<'_>, error: &PyErr) -> Option<Errno> {
    if !error.is_instance_of::<PyOSError>(py) {
        return None;
    }
    let number = error.value(py).getattr("errno").ok()?.extract().ok()?;
    errno(number)
}

/// An errno by its number; `None` where there is none such.
pub(super) fn errno(number: i32) -> Option<Errno> {
    (1..4096)
        .contains(&number)
        .then(|| Errno::from_raw_os_error(number))
}

/// Counts of a Python disk.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) batches: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) exceptions: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) stale_views: AtomicU64,
}

/// What a disk's virtqueues share.
pub(super) struct Shared {
    handler: Mutex<Option<Arc<Handler>>>,
    gate: Gate,
    next: AtomicU64,
    pub(super) registry: Registry,
    pub(super) observers: Observers,
    pub(super) counts: Counts,
}

impl Shared {
    pub(super) fn new(handler: Handler) -> Shared {
        Shared {
            handler: Mutex::new(Some(Arc::new(handler))),
            gate: Gate::new(),
            next: AtomicU64::new(0),
            registry: Registry::default(),
            observers: Observers::default(),
            counts: Counts::default(),
        }
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// Hands a batch to Python, after `attached`; what Python cannot be asked for any more fails.
    pub(super) fn serve(&self, batch: &Arc<Batch>, attached: impl FnOnce(Python<'_>)) {
        let served = self.enter().and_then(|(handler, _entered)| {
            self.counts.batches.fetch_add(1, Relaxed);
            self.counts.requests.fetch_add(batch.len() as u64, Relaxed);
            gate::attach(|py| {
                attached(py);
                handler.call(py, self, batch);
            })
        });
        if served.is_none() {
            batch.complete_all(Err(Errno::IO));
        }
    }

    fn enter(&self) -> Option<(Arc<Handler>, Entered<'_>)> {
        Some((self.handler()?, self.gate.enter()?))
    }

    /// The end: no call begins any more, and Python hears of it, once.
    pub(super) fn close(&self) {
        self.gate.shut(LAST_CALL);
        let handler = self.release();
        self.registry.clear();
        let Some(handler) = handler else {
            return;
        };
        gate::attach(|py| {
            if let Err(error) = handler.closed.bind(py).call0() {
                self.counts.exceptions.fetch_add(1, Relaxed);
                handler.report(py, "closed raised", Some(error));
            }
        });
    }

    /// Lets go of the Python object.
    pub(super) fn release(&self) -> Option<Arc<Handler>> {
        let mut handler = self.handler.lock().unwrap_or_else(PoisonError::into_inner);
        handler.take()
    }

    /// Shows the collector what the disk holds. The caller knows that nobody else uses it.
    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(handler) = self.handler.try_lock() else {
            return Ok(());
        };
        // A second owner is a call under way.
        let Some(handler) = handler.as_ref().filter(|it| Arc::strong_count(it) == 1) else {
            return Ok(());
        };
        visit.call(&handler.report)?;
        visit.call(&handler.closed)?;
        match &handler.calls {
            Calls::Batch(submit) => visit.call(submit),
            Calls::Each {
                read,
                write,
                flush,
                discard,
                write_zeroes,
            } => [read, write, flush, discard, write_zeroes]
                .into_iter()
                .try_for_each(|method| visit.call(method)),
        }
    }

    // --- what went wrong --------------------------------------------------------------------

    /// Requests were completed under views that are still exported.
    pub(super) fn note_stale(&self, count: u64) {
        if self.counts.stale_views.fetch_add(count, Relaxed) == 0 {
            self.tell(
                "a buffer is still in use after its request was completed (an array or a slice \
                 on it?): its memory stays, but is not the request's any more; told once",
            );
        }
    }

    /// Requests failed because their objects are gone.
    pub(super) fn note_dropped(&self, count: usize) {
        self.counts.dropped.fetch_add(count as u64, Relaxed);
        self.tell(&format!(
            "{count} requests were dropped without being completed; they fail"
        ));
    }

    /// Writes to the log, also from a destructor: an exception on its way stays.
    fn tell(&self, words: &str) {
        let Some(handler) = self.handler() else {
            return;
        };
        gate::attach(|py| {
            let raised = PyErr::take(py);
            handler.report(py, words, None);
            if let Some(raised) = raised {
                raised.restore(py);
            }
        });
    }

    fn handler(&self) -> Option<Arc<Handler>> {
        let handler = self.handler.lock().unwrap_or_else(PoisonError::into_inner);
        handler.clone()
    }
}
