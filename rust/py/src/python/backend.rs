//! The backend itself, for devices and layers, and its face to Python.

use super::batch::{Batch, Slot, Way};
use super::engine::PythonEngine;
use super::exporter::{outcome, release_view};
use super::handler::{Handler, Shared};
use crate::device::{Backend, Layers, backend_error};
use crate::fork::PerProcess;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pyclass::{PyTraverseError, PyVisit};
use rustix::io::Errno;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;
use vduse_device::Length;
use vduse_device::backend::{self, Engine, Error, Info, Local, Notice, Observer, Op, Token};

/// How long a flush outside of a virtqueue waits for Python.
const FLUSH_WAIT: Duration = Duration::from_secs(30);

/// A disk written in Python.
struct PythonDisk {
    shared: Arc<Shared>,
    /// Bytes.
    size: AtomicU64,
    block_size: u32,
    read_only: bool,
    can_discard: bool,
}

impl PythonDisk {
    fn resize(&self, size: u64) -> Result<(), Error> {
        let size = backend::disk_size(size)?;
        if self.size.swap(size.0, Relaxed) != size.0 {
            self.shared.observers.tell(&Notice::Resized(size));
        }
        Ok(())
    }
}

impl backend::Backend for PythonDisk {
    fn info(&self) -> Info {
        Info {
            size: Length(self.size.load(Relaxed)),
            block_size: self.block_size,
            read_only: self.read_only,
            can_discard: self.can_discard,
            kind: backend::Kind::Direct,
        }
    }

    fn engine_name(&self) -> &'static str {
        "python"
    }

    fn attach(&self, local: &Local) -> Result<Box<dyn Engine>, Error> {
        let completer = local.completer.clone();
        Ok(Box::new(PythonEngine::new(self.shared.clone(), completer)))
    }

    /// A batch of one flush, on the calling thread.
    fn flush(&self) -> Result<(), Error> {
        if self.read_only {
            return Ok(());
        }
        let (facts, slot) = Slot::new(Token(0), Op::Flush);
        let (ended, wait) = mpsc::channel();
        let way = Way::Waiter(ended);
        let batch = Batch::new(self.shared.clone(), vec![facts], vec![slot], way);
        self.shared.serve(&batch, |_| ());
        batch.returned();
        drop(batch);
        match wait.recv_timeout(FLUSH_WAIT) {
            Ok(result) => result.map_err(|errno| Error::failed("flush", errno)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::failed("flush", Errno::IO)),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(Error::new(
                Errno::TIMEDOUT,
                format!("flush: not completed after {} s", FLUSH_WAIT.as_secs()),
            )),
        }
    }

    fn close(&self) -> Result<(), Error> {
        let flushed = backend::Backend::flush(self);
        self.shared.close();
        flushed
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.shared.observers.add(observer);
    }
}

/// A disk written in Python; see `_native.pyi`.
#[pyclass(frozen, extends = Backend, module = "vduse._native")]
pub struct PythonBackend {
    disk: PerProcess<Arc<PythonDisk>>,
    layers: Layers,
}

#[pymethods]
impl PythonBackend {
    #[new]
    #[pyo3(signature = (handler, report, closed, *, size, block_size, read_only, can_discard, batches))]
    #[expect(clippy::too_many_arguments, reason = "Python gives them by name")]
    fn new(
        handler: &Bound<'_, PyAny>,
        report: Py<PyAny>,
        closed: Py<PyAny>,
        size: u64,
        block_size: u32,
        read_only: bool,
        can_discard: bool,
        batches: bool,
    ) -> PyResult<PyClassInitializer<PythonBackend>> {
        let size = backend::disk_size(size).map_err(backend_error)?;
        if !(512..=1 << 16).contains(&block_size) || !block_size.is_power_of_two() {
            return Err(PyValueError::new_err(format!(
                "block_size: {block_size} is not a power of two between 512 and 65536"
            )));
        }
        if size.0 < u64::from(block_size) {
            return Err(PyValueError::new_err(format!(
                "size: {} bytes are less than a block, {block_size}",
                size.0
            )));
        }
        let disk = Arc::new(PythonDisk {
            shared: Arc::new(Shared::new(Handler::new(handler, report, closed, batches)?)),
            size: AtomicU64::new(size.0),
            block_size,
            read_only,
            can_discard,
        });
        let base = Backend::of(disk.clone());
        let this = PythonBackend {
            layers: base.layers(),
            disk: PerProcess::new(disk),
        };
        Ok(PyClassInitializer::from(base).add_subclass(this))
    }

    fn resize(&self, size: u64) -> PyResult<()> {
        self.disk.get()?.resize(size).map_err(backend_error)
    }

    #[pyo3(signature = (tokens, error = None))]
    fn complete(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        error: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let registry = &self.disk.get()?.shared.registry;
        let tokens = tokens_of(py, tokens)?;
        let errors = errors_of(py, error, tokens.len())?;
        let results = errors.into_iter().map(outcome);
        let results = results.collect::<PyResult<Vec<_>>>()?;
        let mut unknown = 0;
        let mut last: Option<(u64, Arc<Batch>)> = None;
        for (place, &token) in tokens.iter().enumerate() {
            let result = results[if results.len() == 1 { 0 } else { place }];
            let number = token >> super::registry::INDEX_BITS;
            let known = last.take().filter(|(known, _)| *known == number);
            let Some(batch) = known
                .map(|(_, batch)| batch)
                .or_else(|| registry.find(token))
            else {
                unknown += 1;
                continue;
            };
            let index = super::registry::index(token);
            if index < batch.len() {
                release_view(py, &batch, index);
                unknown += usize::from(batch.complete(index, result).is_err());
            } else {
                unknown += 1;
            }
            last = Some((number, batch));
        }
        if unknown > 0 {
            return Err(PyValueError::new_err(format!(
                "{unknown} of {} tokens name no open request",
                tokens.len()
            )));
        }
        Ok(())
    }

    fn python_stats(&self) -> PyResult<[(&'static str, u64); 5]> {
        let counts = &self.disk.get()?.shared.counts;
        Ok([
            ("batches", counts.batches.load(Relaxed)),
            ("requests", counts.requests.load(Relaxed)),
            ("exceptions", counts.exceptions.load(Relaxed)),
            ("dropped", counts.dropped.load(Relaxed)),
            ("stale_views", counts.stale_views.load(Relaxed)),
        ])
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.disk.get() {
            // Ours, the base class's and a layer's: no device uses it. The layer's object holds
            // this one, and says so to the collector unless it is in use itself.
            Ok(disk) if Arc::strong_count(disk) == 2 + self.layers.count() => {
                disk.shared.traverse(&visit)
            }
            _ => Ok(()),
        }
    }

    fn __clear__(&self) {
        if let Ok(disk) = self.disk.get() {
            drop(disk.shared.release());
        }
    }
}

/// Tokens as an integer, a buffer of 64-bit integers, or a sequence.
fn tokens_of(py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    if let Ok(token) = tokens.extract::<u64>() {
        return Ok(vec![token]);
    }
    match PyBuffer::<u64>::get(tokens) {
        Ok(buffer) => buffer.to_vec(py),
        Err(_) => tokens
            .extract()
            .map_err(|_| PyTypeError::new_err("tokens: an integer, or many of 64 bits, unsigned")),
    }
}

/// Errors as an integer for all, or as many as there are tokens.
fn errors_of(
    py: Python<'_>,
    errors: Option<&Bound<'_, PyAny>>,
    tokens: usize,
) -> PyResult<Vec<i32>> {
    let Some(errors) = errors else {
        return Ok(vec![0]);
    };
    if let Ok(error) = errors.extract::<i32>() {
        return Ok(vec![error]);
    }
    let many: Vec<i32> = match PyBuffer::<i32>::get(errors) {
        Ok(buffer) => buffer.to_vec(py)?,
        Err(_) => errors.extract().map_err(|_| {
            PyTypeError::new_err("error: an integer, or as many as there are tokens")
        })?,
    };
    if many.len() != tokens {
        return Err(PyValueError::new_err(format!(
            "{} errors for {tokens} tokens",
            many.len()
        )));
    }
    Ok(many)
}
