//! The buffer protocol, the other way round than in buffer.rs: memory that is shared with a
//! driver, as memoryviews.
//!
//! A view is released when what it was given for has ended: a chain completed, a device reset.
//! Where the program still uses a part of it (a slice, an array on it) the memory stays mapped
//! until it does not, but what it holds is the driver's own affair by then.
//!
//! The driver may change every byte at any time. Python reads such bytes as it reads those of a
//! file mapped by several processes: whatever it finds is a byte.

use crate::fork::PerRequest;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyTuple};
use std::ffi::c_int;
use std::sync::Arc;
use vduse_device::Buffer;
use vduse_device::chains::Memory;

/// Keeps a buffer of shared memory mapped while it lives.
pub trait Shared: Send + Sync {
    /// The memory.
    fn buffer(&self) -> &Buffer;
}

impl Shared for Buffer {
    fn buffer(&self) -> &Buffer {
        self
    }
}

impl Shared for Memory {
    fn buffer(&self) -> &Buffer {
        Memory::buffer(self)
    }
}

/// Exports one piece of shared memory. Seen by a program only as a memoryview's `obj`.
#[pyclass(frozen, module = "vduse._native")]
struct SharedMemory {
    memory: PerRequest<Arc<dyn Shared>>,
    piece: usize,
    writable: bool,
    _alive: Arc<()>,
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
        let piece = this.memory.get()?.buffer().pieces().get(this.piece);
        let piece = piece.ok_or_else(|| PyBufferError::new_err("no such piece"))?;
        let len = ffi::Py_ssize_t::try_from(piece.len)
            .map_err(|_| PyBufferError::new_err("the piece is too long"))?;
        // SAFETY: Python gives a `view` to fill in. It is given a reference to this object, which
        // keeps the piece mapped, for reads, and for writes where it is writable.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                piece.ptr.as_ptr().cast(),
                len,
                c_int::from(!this.writable),
                flags,
            )
        };
        match filled {
            0 => Ok(()),
            _ => Err(PyErr::fetch(slf.py())),
        }
    }
}

/// Memoryviews on a buffer, one a piece, in order; flat bytes.
pub struct Views {
    views: Py<PyTuple>,
    alive: Arc<()>,
}

impl Views {
    /// `writable`: the buffer was translated for writing.
    pub fn new(py: Python<'_>, memory: &Arc<dyn Shared>, writable: bool) -> PyResult<Views> {
        let alive = Arc::new(());
        let views = (0..memory.buffer().pieces().len()).map(|piece| {
            let exporter = SharedMemory {
                memory: PerRequest::new(memory.clone()),
                piece,
                writable,
                _alive: alive.clone(),
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
