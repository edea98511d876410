//! Binding of a driver's virtqueue, for drivers written in Python; see `_native.pyi`.

use crate::datapath::{layout, seconds};
use crate::error;
use crate::fork::PerProcess;
use crate::framework::{Memory, VqLine};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::io::Errno;
use std::ffi::c_int;
use std::time::{Duration, Instant};
use vduse_framework::{DmaError, RequestError, VirtqueueError};

/// A wait looks after signals this often.
const SLICE: Duration = Duration::from_millis(100);

/// The driver's side of one virtqueue; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct Virtqueue(PerProcess<vduse_framework::Virtqueue>);

#[pymethods]
impl Virtqueue {
    #[new]
    fn new(dma: Memory<'_>, line: &VqLine, size: u16, features: u64) -> PyResult<Virtqueue> {
        let line = line.shared()?.clone();
        let queue = vduse_framework::Virtqueue::new(dma.shared()?, line, layout(size, features));
        Ok(Virtqueue(PerProcess::new(queue.map_err(setup_error)?)))
    }

    #[getter]
    fn areas(&self) -> PyResult<(u64, u64, u64)> {
        let [desc, driver, device] = self.0.get()?.areas();
        Ok((desc.0, driver.0, device.0))
    }

    fn start(&self) -> PyResult<()> {
        self.0.get()?.start();
        Ok(())
    }

    fn stop(&self, errno: c_int) -> PyResult<()> {
        if !(1..4096).contains(&errno) {
            return Err(PyValueError::new_err(format!("{errno} is no errno")));
        }
        self.0.get()?.stop(Errno::from_raw_os_error(errno));
        Ok(())
    }

    fn add(
        &self,
        py: Python<'_>,
        readable: Vec<PyBuffer<u8>>,
        writable: Vec<usize>,
    ) -> PyResult<u64> {
        let readable = readable.iter().map(|bytes| bytes.to_vec(py));
        let readable = readable.collect::<PyResult<Vec<_>>>()?;
        let queue = self.0.get()?;
        py.detach(|| queue.add(readable, &writable))
            .map_err(|refused| match refused {
                RequestError::Full => error::os_error(Errno::AGAIN, refused),
                RequestError::NeverFits => PyValueError::new_err(refused.to_string()),
                RequestError::Ended(errno) => self.ended(errno),
            })
    }

    fn kick(&self) -> PyResult<()> {
        self.0.get()?.kick();
        Ok(())
    }

    fn reap<'py>(&self, py: Python<'py>) -> PyResult<Vec<(u64, Bound<'py, PyBytes>)>> {
        let queue = self.0.get()?;
        let used = py.detach(|| queue.reap());
        let used = used.map_err(|errno| self.ended(errno))?.into_iter();
        Ok(used
            .map(|used| (used.token, PyBytes::new(py, &used.data)))
            .collect())
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let queue = self.0.get()?;
        let deadline = timeout.map(seconds).transpose()?;
        let deadline = deadline.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if py.detach(|| queue.wait(left.map_or(SLICE, |left| left.min(SLICE)))) {
                return Ok(true);
            }
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }

    #[getter]
    fn outstanding(&self) -> PyResult<usize> {
        Ok(self.0.get()?.outstanding())
    }
}

impl Virtqueue {
    fn ended(&self, errno: Errno) -> PyErr {
        match self.0.get().map(vduse_framework::Virtqueue::failure) {
            Ok(Some(why)) => error::os_error(errno, why),
            _ => error::errno(errno),
        }
    }
}

fn setup_error(setup: VirtqueueError) -> PyErr {
    let errno = match setup {
        VirtqueueError::Dma(DmaError::Memory(errno)) | VirtqueueError::Eventfd(errno) => errno,
        VirtqueueError::Dma(DmaError::NoSpace) => Errno::NOMEM,
        _ => Errno::INVAL,
    };
    error::os_error(errno, setup)
}

/// Adds the class to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Virtqueue>()
}
