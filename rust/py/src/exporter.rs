//! The buffer protocol, the other way round than in buffer.rs: memory that is shared with a
//! driver, as memoryviews.
//!
//! A view is released when what it was given for has ended: a chain or a request completed, a
//! device reset.
//! Where the program still uses a part of it (a slice, an array on it) the memory stays mapped
//! until it does not, but what it holds is the driver's own affair by then.
//!
//! The driver may change every byte at any time. Python reads such bytes as it reads those of a
//! file mapped by several processes: whatever it finds is a byte.

use crate::fork::PerRequest;
use crate::python::Lease;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyTuple};
use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;
use vduse_device::Buffer;
use vduse_device::chains::Memory;
use vduse_mem::Piece;

/// What keeps the memory mapped, and is told by its end that nobody looks at it any more.
pub enum Owner {
    /// One direction of a chain.
    Chain(Arc<Memory>),
    /// A read or write of a disk written in Python.
    Request(Lease),
}

impl Owner {
    /// Valid as long as this lives.
    fn piece(&self, index: usize) -> Option<Piece> {
        match self {
            Owner::Chain(memory) => memory.buffer().pieces().get(index).copied(),
            Owner::Request(lease) => Some(lease.piece()),
        }
    }
}

/// Exports one piece of shared memory. Seen by a program only as a memoryview's `obj`.
#[pyclass(frozen, module = "vduse._native")]
struct SharedMemory {
    owner: PerRequest<Owner>,
    piece: usize,
    writable: bool,
    /// Counts those of one chain.
    _alive: Option<Arc<()>>,
}

#[pymethods]
impl SharedMemory {
    unsafe fn __getbuffer__(
        slf: &Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        // SAFETY: Python gives a `view` to fill in; without an object it is none to release.
        unsafe { (*view).obj = std::ptr::null_mut() };
        let this = slf.get();
        let piece = this.owner.get()?.piece(this.piece);
        let piece = piece.ok_or_else(|| PyBufferError::new_err("no such piece"))?;
        // SAFETY: Python's `view`. This object, which it is given a reference to, keeps the piece
        // mapped, for reads, and for writes where it is writable.
        unsafe {
            fill(
                slf.as_any(),
                piece.ptr.as_ptr(),
                piece.len,
                this.writable,
                view,
                flags,
            )
        }
    }
}

/// Fills in `view` with flat bytes, exported by `owner`.
///
/// # Safety
/// `view` is a structure to fill in, as the buffer protocol has it. The memory is valid as long as
/// `owner` lives, for reads, and for writes where it is `writable`.
pub unsafe fn fill(
    owner: &Bound<'_, PyAny>,
    start: *mut u8,
    len: usize,
    writable: bool,
    view: *mut ffi::Py_buffer,
    flags: c_int,
) -> PyResult<()> {
    let len = ffi::Py_ssize_t::try_from(len)
        .map_err(|_| PyBufferError::new_err("the piece is too long"))?;
    let readonly = c_int::from(!writable);
    // SAFETY: as the caller has it; a reference to `owner` is made.
    let filled =
        unsafe { ffi::PyBuffer_FillInfo(view, owner.as_ptr(), start.cast(), len, readonly, flags) };
    match filled {
        0 => Ok(()),
        _ => Err(PyErr::fetch(owner.py())),
    }
}

/// A memoryview on memory in one piece; flat bytes. `writable`: it was translated for writing.
pub fn view(py: Python<'_>, owner: Owner, writable: bool) -> PyResult<Bound<'_, PyMemoryView>> {
    let exporter = SharedMemory {
        owner: PerRequest::new(owner),
        piece: 0,
        writable,
        _alive: None,
    };
    PyMemoryView::from(Bound::new(py, exporter)?.as_any())
}

/// Memory of this process that Python may write at any time, as the driver may write its own.
pub struct Scratch(Box<[UnsafeCell<u8>]>);

// SAFETY: Rust makes no reference to the bytes: it copies them, whatever they are.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// Holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Scratch {
        Scratch(bytes.into_iter().map(UnsafeCell::new).collect())
    }

    /// The memory; valid as long as this lives where it is.
    pub fn piece(&self) -> Piece {
        Piece {
            ptr: NonNull::from(&*self.0).cast(),
            len: self.0.len(),
        }
    }

    /// Copies all to `buffer`, as far as that goes.
    pub fn copy_to(&self, buffer: &Buffer) {
        let mut bytes = vec![0; self.0.len()];
        // SAFETY: the piece is of `self`; Python may write meanwhile, and a byte is a byte.
        unsafe { self.piece().read_into(&mut bytes) };
        buffer.write(&bytes);
    }
}

/// Memoryviews on a chain's memory, one a piece, in order; flat bytes.
pub struct Views {
    views: Py<PyTuple>,
    alive: Arc<()>,
}

impl Views {
    /// `writable`: the buffer was translated for writing.
    pub fn new(py: Python<'_>, memory: &Arc<Memory>, writable: bool) -> PyResult<Views> {
        let alive = Arc::new(());
        let views = (0..memory.buffer().pieces().len()).map(|piece| {
            let exporter = SharedMemory {
                owner: PerRequest::new(Owner::Chain(memory.clone())),
                piece,
                writable,
                _alive: Some(alive.clone()),
            };
            PyMemoryView::from(Bound::new(py, exporter)?.as_any())
        });
        let views: Vec<_> = views.collect::<PyResult<_>>()?;
        let views = PyTuple::new(py, views)?.unbind();
        Ok(Views { views, alive })
    }

    /// The memoryviews.
    pub fn get(&self, py: Python<'_>) -> Py<PyTuple> {
        self.views.clone_ref(py)
    }

    /// Releases all that can be; how many pieces are still in use.
    pub fn release(self, py: Python<'_>) -> usize {
        for view in self.views.bind(py).iter() {
            // BufferError: something was made of the view itself and uses it.
            let _ = view.call_method0("release");
        }
        Arc::strong_count(&self.alive) - 1
    }
}
