//! Binding of the channel half.

use crate::fork::PerProcess;
use crate::{error, fd};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One end of a call socket of the embedded channel; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct CallSocket(PerProcess<Mutex<Open>>);

/// None after `close()`.
type Open = Option<Arc<vduse_channel::CallSocket>>;

impl CallSocket {
    fn open(&self) -> PyResult<MutexGuard<'_, Open>> {
        Ok(self.0.get()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The socket itself, for the data path. ValueError after `close()`.
    pub fn shared(&self) -> PyResult<Arc<vduse_channel::CallSocket>> {
        let socket = self.open()?;
        socket.clone().ok_or_else(|| error::closed("call socket"))
    }
}

#[pymethods]
impl CallSocket {
    #[new]
    fn new(fd: c_int) -> PyResult<CallSocket> {
        let socket = Arc::new(vduse_channel::CallSocket::new(fd::take(fd)?));
        Ok(CallSocket(PerProcess::new(Mutex::new(Some(socket)))))
    }

    #[pyo3(signature = (nr, payload = b"".as_slice(), fds = Vec::new()))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        nr: u32,
        payload: &[u8],
        fds: Vec<c_int>,
    ) -> PyResult<(i32, Bound<'py, PyBytes>, Vec<c_int>)> {
        let socket = self.shared()?;
        let fds = fds.into_iter().map(fd::dup).collect::<PyResult<Vec<_>>>()?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
        let answer = py
            .detach(|| socket.call(nr, payload, &fds))
            .map_err(error::errno)?;
        Ok((
            answer.result,
            PyBytes::new(py, &answer.payload),
            answer.fds.into_iter().map(IntoRawFd::into_raw_fd).collect(),
        ))
    }

    fn fileno(&self) -> PyResult<c_int> {
        Ok(self.shared()?.as_fd().as_raw_fd())
    }

    fn close(&self) -> PyResult<()> {
        if let Some(socket) = self.open()?.take() {
            // Others may still hold it: a call that waits, the data path.
            socket.shutdown();
        }
        Ok(())
    }
}

/// Adds this half's classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<CallSocket>()
}
