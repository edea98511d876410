//! Memory of a batch's requests, lent for the time of a call: one exporter serves call after call.
//!
//! While a request's method runs nobody else can end the request: its tokens are unknown, and it
//! is the worker itself that runs the method. So its memory stays mapped without a [`Lease`], and
//! only what Python still uses after the call gets one.

use super::batch::{Batch, Kind, Lease};
use super::exporter::is_shared;
use crate::exporter::fill;
use crate::fork::PerRequest;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use rustix::io::Errno;
use std::ffi::c_int;
use std::mem::forget;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use vduse_mem::Piece;

/// Exports the memory of one request after the other. Seen by a program only as a memoryview's
/// `obj`.
#[pyclass(frozen, module = "vduse._native")]
struct LentMemory(PerRequest<Lent>);

/// The memory that is lent now; changed under the GIL by the lender, as long as it is the only one
/// that holds the exporter.
#[derive(Default)]
struct Lent {
    start: AtomicPtr<u8>,
    len: AtomicUsize,
    writable: AtomicBool,
    /// Keeps the memory mapped once the call is over.
    lease: OnceLock<Lease>,
}

#[pymethods]
impl LentMemory {
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        // SAFETY: Python gives a `view` to fill in; without an object it is none to release.
        unsafe { (*view).obj = null_mut() };
        let lent = slf.get().0.get()?;
        let (start, len) = (lent.start.load(Relaxed), lent.len.load(Relaxed));
        let writable = lent.writable.load(Relaxed);
        // SAFETY: Python's `view`. As long as a reference to this object is left the lender sees
        // to it that the memory stays mapped, for reads, and for writes where it is writable.
        unsafe { fill(slf.as_any(), start, len, writable, view, flags) }
    }
}

/// Lends the memory of a batch's requests, and ends them.
pub(super) struct Lender<'py, 'a> {
    py: Python<'py>,
    batch: &'a Arc<Batch>,
    /// Memory that can be lent, by request.
    pieces: Vec<Option<Piece>>,
    exporter: Option<Bound<'py, LentMemory>>,
    /// The request whose memory was lent last.
    lent: Option<usize>,
    /// How requests ended, to be told all at once: the worker takes them after the last call.
    ended: Vec<(usize, Result<(), Errno>)>,
}

impl<'py, 'a> Lender<'py, 'a> {
    /// For requests that nobody but the caller can end, on the worker's thread.
    pub(super) fn new(py: Python<'py>, batch: &'a Arc<Batch>) -> Lender<'py, 'a> {
        Lender {
            py,
            batch,
            pieces: batch.pieces(),
            exporter: None,
            lent: None,
            ended: Vec::with_capacity(batch.len()),
        }
    }

    /// A view on a request's memory until it is ended here; `None` where it is not the driver's own
    /// in one piece.
    pub(super) fn view(&mut self, index: usize) -> PyResult<Option<Bound<'py, PyMemoryView>>> {
        self.take_back();
        let Some(piece) = self.pieces[index] else {
            return Ok(None);
        };
        let exporter = match self.exporter.take() {
            Some(exporter) => exporter,
            None => Bound::new(self.py, LentMemory(PerRequest::new(Lent::default())))?,
        };
        let lent = exporter.get().0.get()?;
        lent.start.store(piece.ptr.as_ptr(), Relaxed);
        lent.len.store(piece.len, Relaxed);
        let writable = self.batch.facts[index].kind == Kind::Read;
        lent.writable.store(writable, Relaxed);
        self.lent = Some(index);
        let exporter = self.exporter.insert(exporter);
        PyMemoryView::from(exporter.as_any()).map(Some)
    }

    /// Ends a request; the caller holds none of its views any more.
    pub(super) fn end(&mut self, index: usize, result: Result<(), Errno>) {
        let is_settled = self.pieces[index].is_some() && !self.take_back();
        self.ended.push((index, result));
        if !is_settled {
            // Whether it is in use, and what a copy holds, is a matter of this moment.
            self.tell();
        }
    }

    /// The end of a loan; whether Python still uses the memory.
    fn take_back(&mut self) -> bool {
        let Some(index) = self.lent.take() else {
            return false;
        };
        let Some(exporter) = self.exporter.take_if(|it| is_shared(it.as_any())) else {
            return false;
        };
        let Ok(lease) = self.batch.export(index) else {
            unreachable!("a request is open during its call");
        };
        match exporter.get().0.get() {
            // An exporter that has a lease is never used again: this is its first.
            Ok(lent) => drop(lent.lease.set(lease)),
            // The method forked, and this is the child: the memory stays for good.
            Err(_) => forget(lease),
        }
        true
    }

    fn tell(&mut self) {
        self.batch.complete_many(self.ended.drain(..));
    }
}

impl Drop for Lender<'_, '_> {
    fn drop(&mut self) {
        self.take_back();
        self.tell();
    }
}

/// `method(offset, memory)`. Without a tuple of arguments, which `call1` has to make where the
/// stable interface is Python 3.11's.
pub(super) fn call<'py>(
    method: &Bound<'py, PyAny>,
    offset: u64,
    memory: &Bound<'py, PyMemoryView>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = method.py();
    let offset = offset.into_pyobject(py)?;
    let end = null_mut::<ffi::PyObject>();
    // SAFETY: living objects and the null pointer that ends them; the GIL is held. What is returned
    // is a new reference, or null where an exception is set.
    unsafe {
        let (method, memory) = (method.as_ptr(), memory.as_ptr());
        let outcome = ffi::PyObject_CallFunctionObjArgs(method, offset.as_ptr(), memory, end);
        Bound::from_owned_ptr_or_err(py, outcome)
    }
}
