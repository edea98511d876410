//! What Python sees of a batch: its requests, and its records as a buffer, which the batch object
//! exports. The requests' memory is exported as that of chains is: crate::exporter.

use super::batch::{Batch, Facts, Kind, NotOpen};
use super::handler::errno;
use crate::exporter::{self, Owner};
use crate::fork::PerRequest;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyString, PyWeakrefMethods, PyWeakrefReference};
use rustix::io::Errno;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{null_mut, read_volatile};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use vduse_mem::Piece;

/// A record's result until somebody writes another one: the request stays open.
const OPEN: i32 = -1;

/// One operation of the batch, as numpy sees it.
#[repr(C)]
struct Record {
    token: u64,
    offset: u64,
    length: u64,
    address: u64,
    op: u8,
    may_unmap: u8,
    _pad: [u8; 2],
    result: i32,
}

/// [`Record`] in the words of PEP 3118.
const FORMAT: &CStr = c"T{Q:token:Q:offset:Q:length:Q:address:B:op:?:may_unmap:2xi:result:}";

/// The records of a batch. Python may write to them at any time.
pub(super) struct Records {
    records: Box<[UnsafeCell<Record>]>,
    shape: [ffi::Py_ssize_t; 1],
    strides: [ffi::Py_ssize_t; 1],
}

// SAFETY: the records are Python's to write. Of them Rust reads `result` alone, as an integer
// that may be anything; shape and strides never change.
unsafe impl Sync for Records {}

impl Records {
    pub(super) fn new(each: impl Iterator<Item = (u64, Facts, Option<Piece>)>) -> Records {
        let records: Box<[_]> = each
            .map(|(token, facts, piece)| {
                UnsafeCell::new(Record {
                    token,
                    offset: facts.offset,
                    length: facts.length,
                    address: piece.map_or(0, |piece| piece.ptr.addr().get() as u64),
                    op: facts.kind as u8,
                    may_unmap: facts.may_unmap.into(),
                    _pad: [0; 2],
                    result: OPEN,
                })
            })
            .collect();
        Records {
            shape: [records.len() as ffi::Py_ssize_t],
            strides: [size_of::<Record>() as ffi::Py_ssize_t],
            records,
        }
    }

    /// What was written as an operation's result; `None`: it stays open.
    fn result(&self, index: usize) -> Option<Result<(), Errno>> {
        let record = self.records[index].get();
        // SAFETY: the record lives as long as `self`; Python may write meanwhile, and whatever
        // is read is an integer.
        let result = unsafe { read_volatile(&raw const (*record).result) };
        match result {
            OPEN => None,
            0 => Some(Ok(())),
            number => Some(Err(errno(number).unwrap_or(Errno::IO))),
        }
    }
}

fn not_open(_: NotOpen) -> PyErr {
    PyValueError::new_err("the request is completed already")
}

/// 0, or a positive errno.
pub(super) fn outcome(number: i32) -> PyResult<Result<(), Errno>> {
    match number {
        0 => Ok(Ok(())),
        number => match errno(number) {
            Some(errno) => Ok(Err(errno)),
            None => Err(PyValueError::new_err(format!(
                "error {number} is neither 0 nor an errno"
            ))),
        },
    }
}

/// A batch of requests; see `_native.pyi`.
#[pyclass(frozen, sequence, module = "vduse._native")]
pub struct IoBatch {
    batch: PerRequest<Arc<Batch>>,
}

impl IoBatch {
    pub(super) fn new(batch: Arc<Batch>) -> IoBatch {
        batch.hold();
        IoBatch {
            batch: PerRequest::new(batch),
        }
    }

    fn batch(&self) -> PyResult<&Arc<Batch>> {
        self.batch.get()
    }

    /// Completes all that are open, their views released before.
    pub(super) fn complete_all(
        py: Python<'_>,
        batch: &Arc<Batch>,
        result: Result<(), Errno>,
    ) -> usize {
        release_views(py, batch, |_| true);
        batch.complete_all(result)
    }
}

#[pymethods]
impl IoBatch {
    fn __len__(&self) -> PyResult<usize> {
        Ok(self.batch()?.len())
    }

    fn __getitem__(&self, index: isize) -> PyResult<IoRequest> {
        let batch = self.batch()?;
        let len = batch.len();
        let place = if index < 0 {
            index.checked_add_unsigned(len)
        } else {
            Some(index)
        };
        match place.and_then(|index| usize::try_from(index).ok()) {
            Some(index) if index < len => Ok(IoRequest::new(batch.clone(), index)),
            _ => Err(PyIndexError::new_err("batch index out of range")),
        }
    }

    fn __iter__(&self) -> PyResult<IoBatchIterator> {
        Ok(IoBatchIterator {
            batch: IoBatch::new(self.batch()?.clone()),
            next: AtomicUsize::new(0),
        })
    }

    #[getter]
    fn open(&self) -> PyResult<usize> {
        Ok(self.batch()?.open())
    }

    #[pyo3(signature = (error = 0))]
    fn complete(&self, py: Python<'_>, error: i32) -> PyResult<usize> {
        let batch = self.batch()?;
        Ok(IoBatch::complete_all(py, batch, outcome(error)?))
    }

    fn commit(&self, py: Python<'_>) -> PyResult<usize> {
        let batch = self.batch()?;
        let Some(records) = batch.made_records() else {
            return Ok(0);
        };
        // Looked at once: what is written meanwhile waits for the next call.
        let results: Vec<_> = (0..batch.len())
            .map(|index| records.result(index))
            .collect();
        release_views(py, batch, |index| results[index].is_some());
        Ok(batch.complete_those(|index| results[index]))
    }

    fn defer(&self) -> PyResult<()> {
        self.batch()?.defer();
        Ok(())
    }

    /// The records.
    ///
    /// # Safety
    /// As the buffer protocol has it: `view` is a structure to fill in.
    unsafe fn __getbuffer__(
        slf: PyRef<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        // SAFETY: the caller's `view`; without an object it is none that has to be released.
        unsafe { (*view).obj = null_mut() };
        let records = slf.batch()?.records();
        let bytes = size_of_val::<[UnsafeCell<Record>]>(&records.records);
        let has = |flag| flags & flag == flag;
        let (shape, strides) = (&raw const records.shape, &raw const records.strides);
        // SAFETY: the caller's `view`. The records live as long as the batch, which the object
        // that the view refers to holds; they are in cells, so they may be written to.
        unsafe {
            (*view).buf = UnsafeCell::raw_get(records.records.as_ptr()).cast::<c_void>();
            (*view).len = bytes as ffi::Py_ssize_t;
            (*view).readonly = 0;
            (*view).itemsize = records.strides[0];
            (*view).format = match has(ffi::PyBUF_FORMAT) {
                true => FORMAT.as_ptr().cast_mut(),
                false => null_mut(),
            };
            (*view).ndim = 1;
            (*view).shape = match has(ffi::PyBUF_ND) {
                true => shape.cast_mut().cast(),
                false => null_mut(),
            };
            (*view).strides = match has(ffi::PyBUF_STRIDES) {
                true => strides.cast_mut().cast(),
                false => null_mut(),
            };
            (*view).suboffsets = null_mut();
            (*view).internal = null_mut();
            (*view).obj = slf.into_ptr();
        }
        Ok(())
    }
}

impl Drop for IoBatch {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.let_go();
        }
    }
}

/// The requests of a batch, one after the other.
#[pyclass(frozen, module = "vduse._native")]
struct IoBatchIterator {
    batch: IoBatch,
    next: AtomicUsize,
}

#[pymethods]
impl IoBatchIterator {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self) -> PyResult<Option<IoRequest>> {
        let batch = self.batch.batch()?;
        let index = self.next.fetch_add(1, Relaxed);
        Ok((index < batch.len()).then(|| IoRequest::new(batch.clone(), index)))
    }
}

/// One request of a batch; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct IoRequest {
    batch: PerRequest<Arc<Batch>>,
    index: usize,
}

impl IoRequest {
    fn new(batch: Arc<Batch>, index: usize) -> IoRequest {
        batch.hold_one(index);
        IoRequest {
            batch: PerRequest::new(batch),
            index,
        }
    }

    fn batch(&self) -> PyResult<&Arc<Batch>> {
        self.batch.get()
    }

    fn facts(&self) -> PyResult<Facts> {
        Ok(self.batch()?.facts[self.index])
    }

    /// The operation's name.
    pub(super) fn name(kind: Kind) -> &'static str {
        match kind {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::Discard => "discard",
            Kind::WriteZeroes => "write_zeroes",
        }
    }
}

#[pymethods]
impl IoRequest {
    #[getter]
    fn op<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyString>> {
        Ok(match self.facts()?.kind {
            Kind::Read => intern!(py, "read"),
            Kind::Write => intern!(py, "write"),
            Kind::Flush => intern!(py, "flush"),
            Kind::Discard => intern!(py, "discard"),
            Kind::WriteZeroes => intern!(py, "write_zeroes"),
        }
        .clone())
    }

    #[getter]
    fn offset(&self) -> PyResult<u64> {
        Ok(self.facts()?.offset)
    }

    #[getter]
    fn length(&self) -> PyResult<u64> {
        Ok(self.facts()?.length)
    }

    #[getter]
    fn may_unmap(&self) -> PyResult<bool> {
        Ok(self.facts()?.may_unmap)
    }

    #[getter]
    fn token(&self) -> PyResult<u64> {
        Ok(self.batch()?.token(self.index))
    }

    #[getter]
    fn completed(&self) -> PyResult<bool> {
        Ok(self.batch()?.is_completed(self.index))
    }

    #[getter]
    fn buffer<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        let this = slf.get();
        let batch = this.batch()?;
        let py = slf.py();
        if let Some(known) = batch.known_view(py, this.index)
            && let Some(view) = known.bind(py).upgrade()
            && view.len().is_ok()
        {
            return Ok(view.cast_into()?);
        }
        // There is none, or its user has released it.
        let view = view(py, batch, this.index)?;
        batch.know_view(this.index, PyWeakrefReference::new(view.as_any())?.unbind());
        Ok(view)
    }

    #[pyo3(signature = (error = 0))]
    fn complete(&self, py: Python<'_>, error: i32) -> PyResult<()> {
        let batch = self.batch()?;
        let result = outcome(error)?;
        release_view(py, batch, self.index);
        batch.complete(self.index, result).map_err(not_open)
    }
}

impl Drop for IoRequest {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.let_go_of_one(self.index);
        }
    }
}

/// A view on an operation's memory; its user knows none before.
pub(super) fn view<'py>(
    py: Python<'py>,
    batch: &Arc<Batch>,
    index: usize,
) -> PyResult<Bound<'py, PyMemoryView>> {
    let lease = batch.export(index).map_err(PyValueError::new_err)?;
    let writable = batch.facts[index].kind == Kind::Read;
    exporter::view(py, Owner::Request(lease), writable)
}

/// Whether somebody else holds the object too.
pub(super) fn is_shared(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a living object, and the GIL is held.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) > 1 }
}

/// Releases the view that Python was given of an operation that ends now.
pub(super) fn release_view(py: Python<'_>, batch: &Batch, index: usize) {
    if let Some(view) = batch.forget_view(index)
        && let Some(view) = view.bind(py).upgrade()
    {
        // BufferError: something stands on it; the batch finds it exported and reports it.
        let _ = view.call_method0(intern!(py, "release"));
    }
}

fn release_views(py: Python<'_>, batch: &Batch, which: impl Fn(usize) -> bool) {
    if batch.has_views() {
        for index in (0..batch.len()).filter(|&index| which(index)) {
            release_view(py, batch, index);
        }
    }
}
