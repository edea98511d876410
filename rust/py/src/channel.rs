//! Binding of the channel half.

use crate::fork::PerProcess;
use crate::{error, fd};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vduse_channel::{Counts, IrqSink, UmemPort};
use vduse_device::Hookup;

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
    fn shared(&self) -> PyResult<Arc<vduse_channel::CallSocket>> {
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

    fn start_counting(&self) -> PyResult<()> {
        self.shared()?.start_counting();
        Ok(())
    }

    fn counts(&self) -> PyResult<Counts> {
        Ok(self.shared()?.counts())
    }

    fn close(&self) -> PyResult<()> {
        if let Some(socket) = self.open()?.take() {
            // Others may still hold it: a call that waits, the data path.
            socket.shutdown();
        }
        Ok(())
    }
}

/// An open device node of the kernel's; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct KernelNode(PerProcess<Arc<vduse_channel::KernelNode>>);

#[pymethods]
impl KernelNode {
    #[new]
    fn new(fd: c_int, api_version: u64) -> PyResult<KernelNode> {
        let node = vduse_channel::KernelNode::new(fd::take(fd)?, api_version);
        Ok(KernelNode(PerProcess::new(Arc::new(node))))
    }

    fn fileno(&self) -> PyResult<c_int> {
        let number = self.0.get()?.as_raw_fd();
        number.ok_or_else(|| error::closed("device node"))
    }

    fn start_counting(&self) -> PyResult<()> {
        self.0.get()?.start_counting();
        Ok(())
    }

    fn counts(&self) -> PyResult<Counts> {
        Ok(self.0.get()?.counts())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let node = self.0.get()?;
        // The kernel takes its time, and so may an ioctl of a worker.
        py.detach(|| node.close());
        Ok(())
    }
}

/// What a data path reaches its channel by: `CallSocket | KernelNode` of `_native.pyi`.
#[derive(FromPyObject)]
pub enum Link<'py> {
    #[pyo3(annotation = "CallSocket")]
    Embedded(Bound<'py, CallSocket>),
    #[pyo3(annotation = "KernelNode")]
    Kernel(Bound<'py, KernelNode>),
}

impl Link<'_> {
    /// All ways into the channel; `umem`: with pages of our own. ValueError after its `close()`.
    pub fn hookup(&self, umem: bool) -> PyResult<Hookup> {
        fn all<L: UmemPort + IrqSink + 'static>(link: Arc<L>, umem: bool) -> Hookup {
            Hookup {
                resolver: link.clone(),
                umem: umem.then(|| link.clone() as Arc<dyn UmemPort>),
                irq_sink: link,
            }
        }
        match self {
            Link::Embedded(socket) => Ok(all(socket.get().shared()?, umem)),
            Link::Kernel(node) => {
                node.get().fileno()?;
                Ok(all(node.get().0.get()?.clone(), umem))
            }
        }
    }
}

/// Adds this half's classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<CallSocket>()?;
    m.add_class::<KernelNode>()
}
