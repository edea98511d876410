//! Binding of devices that are served in Python: a batch of chains takes the GIL once.

use crate::channel::Link;
use crate::datapath::DataPath;
use crate::device::Pool;
use crate::exporter::Views;
use crate::fork::PerRequest;
use crate::{attachment, error, gate, report};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyConnectionResetError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyTuple};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use vduse_device::chains::{Ended, Exported, Handler, HeldChain};
use vduse_mem::Access;

/// A chain in Python's hands; see `_native.pyi`.
#[pyclass(frozen, weakref, module = "vduse._native")]
struct Chain {
    chain: PerRequest<Arc<HeldChain>>,
    queue: u32,
    /// How far [`Chain::write`] has written.
    written: AtomicU64,
    /// The memoryviews that were asked for: readable, writable.
    views: [OnceLock<Py<PyTuple>>; 2],
}

impl Chain {
    fn new(queue: u32, chain: Arc<HeldChain>) -> Chain {
        Chain {
            chain: PerRequest::new(chain),
            queue,
            written: AtomicU64::new(0),
            views: Default::default(),
        }
    }

    fn held(&self) -> PyResult<&Arc<HeldChain>> {
        self.chain.get()
    }

    /// Made when first asked for. No lock is held where Python code may run.
    fn views(&self, py: Python<'_>, access: Access) -> PyResult<Py<PyTuple>> {
        let memory = self.held()?.memory(access).map_err(ended)?;
        let known = &self.views[access as usize];
        if let Some(views) = known.get() {
            return Ok(views.clone_ref(py));
        }
        let views = Views::new(py, &memory, access == Access::Write)?;
        drop(memory);
        let list = views.get(py);
        let queue = self.queue;
        let released = Released { views, queue };
        self.held()?.exported(Box::new(released)).map_err(ended)?;
        // Another thread may have been quicker: then it has views of its own.
        let _ = known.set(list.clone_ref(py));
        Ok(list)
    }

    fn end(&self, written: u64) -> PyResult<()> {
        let chain = self.held()?;
        let room = chain.writable_len();
        let written = u32::try_from(written)
            .ok()
            .filter(|&written| u64::from(written) <= room);
        let Some(written) = written else {
            return Err(PyValueError::new_err(format!(
                "written: the chain has room for {room} bytes"
            )));
        };
        chain.complete(written).map_err(ended)
    }
}

#[pymethods]
impl Chain {
    #[getter]
    fn readable(&self, py: Python<'_>) -> PyResult<Py<PyTuple>> {
        self.views(py, Access::Read)
    }

    #[getter]
    fn writable(&self, py: Python<'_>) -> PyResult<Py<PyTuple>> {
        self.views(py, Access::Write)
    }

    #[getter]
    fn readable_length(&self) -> PyResult<u64> {
        Ok(self.held()?.readable_len())
    }

    #[getter]
    fn writable_length(&self) -> PyResult<u64> {
        Ok(self.held()?.writable_len())
    }

    #[getter]
    fn ended(&self) -> PyResult<bool> {
        Ok(self.held()?.has_ended())
    }

    fn read<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.held()?.read().map_err(ended)?))
    }

    #[pyo3(signature = (data, offset = None))]
    fn write(&self, py: Python<'_>, data: PyBuffer<u8>, offset: Option<u64>) -> PyResult<usize> {
        let at = offset.unwrap_or_else(|| self.written.load(Ordering::Relaxed));
        let count = self.held()?.write(at, &data.to_vec(py)?).map_err(ended)?;
        if count > 0 {
            self.written.fetch_max(at + count as u64, Ordering::Relaxed);
        }
        Ok(count)
    }

    #[pyo3(signature = (written = None))]
    fn complete(&self, written: Option<u64>) -> PyResult<()> {
        self.end(written.unwrap_or_else(|| self.written.load(Ordering::Relaxed)))
    }
}

/// The chains of one batch; see `_native.pyi`.
#[pyclass(frozen, sequence, module = "vduse._native")]
struct ChainBatch(Py<PyTuple>);

impl ChainBatch {
    fn complete_rest(&self, py: Python<'_>, written: Option<u64>) -> PyResult<()> {
        for chain in self.0.bind(py).iter() {
            let chain = chain.cast::<Chain>()?.get();
            if !chain.held()?.has_ended() {
                chain.complete(written)?;
            }
        }
        Ok(())
    }
}

#[pymethods]
impl ChainBatch {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.0.bind(py).len()
    }

    fn __getitem__<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.0.bind(index.py()).as_any().get_item(index)
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        self.0.bind(py).try_iter()
    }

    #[pyo3(signature = (written = None))]
    fn complete(&self, py: Python<'_>, written: Option<u64>) -> PyResult<()> {
        self.complete_rest(py, written)
    }
}

/// Memoryviews of a chain that has not ended.
struct Released {
    views: Views,
    queue: u32,
}

impl Exported for Released {
    fn release(self: Box<Self>) {
        // At the interpreter's end nobody is left to use the views.
        gate::attach(|py| {
            let used = self.views.release(py);
            if used > 0 {
                let words = format!(
                    "virtqueue {}: {used} memoryviews of a chain that has ended are still in use: \
                     the memory they show is the driver's",
                    self.queue
                );
                report::warning(py, &words);
            }
        });
    }
}

/// What calls Python.
struct PyHandler {
    submit: Py<PyAny>,
    drain: Option<Py<PyAny>>,
}

impl PyHandler {
    fn submit(&self, py: Python<'_>, queue: u32, chains: Vec<Arc<HeldChain>>) -> PyResult<()> {
        let chains: Vec<_> = chains
            .into_iter()
            .map(|chain| Bound::new(py, Chain::new(queue, chain)))
            .collect::<PyResult<_>>()?;
        let chains = PyTuple::new(py, chains)?;
        let batch = ChainBatch(chains.unbind());
        let batch = Bound::new(py, batch)?;
        if let Err(error) = self.submit.call1(py, (queue, &batch)) {
            report::exception(
                py,
                &format!(
                    "virtqueue {queue}: a batch of chains failed; those not completed are completed with 0 bytes"
                ),
                error,
            );
            batch.get().complete_rest(py, Some(0))?;
        }
        Ok(())
    }
}

impl Handler for PyHandler {
    fn handle(&self, queue: u32, chains: Vec<Arc<HeldChain>>) {
        // At the interpreter's end the chains are dropped: completed with nothing written.
        gate::attach(|py| {
            attachment::keep(py);
            if let Err(error) = self.submit(py, queue, chains) {
                report::exception(py, &format!("virtqueue {queue}"), error);
            }
        });
    }

    fn drain(&self, queue: u32) {
        let Some(drain) = &self.drain else {
            return;
        };
        gate::attach(|py| {
            if let Err(error) = drain.call1(py, (queue,)) {
                report::exception(py, &format!("virtqueue {queue}: drain failed"), error);
            }
        });
    }

    fn forgotten(&self, queue: u32, count: usize) {
        gate::attach(|py| {
            let words = format!(
                "virtqueue {queue}: {count} chains were dropped and not completed: completed with \
                 0 bytes"
            );
            report::warning(py, &words);
        });
    }
}

/// All queues of one device that is served in Python; see `_native.pyi`.
#[pyclass(frozen, extends = DataPath, module = "vduse._native")]
struct ChainDataPath;

#[pymethods]
impl ChainDataPath {
    #[new]
    #[pyo3(signature = (pool, resolver, submit, drain = None))]
    fn new(
        pool: &Pool,
        resolver: Link<'_>,
        submit: Py<PyAny>,
        drain: Option<Py<PyAny>>,
    ) -> PyResult<PyClassInitializer<ChainDataPath>> {
        let handler = Arc::new(PyHandler { submit, drain });
        let path = vduse_device::DataPath::chains(pool.open()?, resolver.hookup(false)?, handler)
            .map_err(error::errno)?;
        let base = DataPath::new(path, pool.lease.clone(), None);
        Ok(PyClassInitializer::from(base).add_subclass(ChainDataPath))
    }
}

fn ended(error: Ended) -> PyErr {
    match error {
        Ended::Completed => PyValueError::new_err(error.to_string()),
        Ended::Reset => PyConnectionResetError::new_err(error.to_string()),
    }
}

/// Adds these classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Chain>()?;
    m.add_class::<ChainBatch>()?;
    m.add_class::<ChainDataPath>()
}
