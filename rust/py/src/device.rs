//! Binding of pools, backends and disks; see `_native.pyi` for what each method promises.

use crate::channel::Link;
use crate::datapath::{DataPath, Lease, seconds};
use crate::error;
use crate::fork::PerProcess;
use crate::stats;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pyclass::{PyTraverseError, PyVisit};
use pyo3::types::PyDict;
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vduse_device::backend::{
    self, EngineChoice, File, History, Locking, Memory, Null, OpenOptions,
};
use vduse_device::layers::Window;
use vduse_device::{Disk, Length, Limits, Offset};
use vduse_worker::{PoolError, Settings};

/// The worker threads; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct Pool {
    pool: PerProcess<Workers>,
    pub(crate) lease: Lease,
}

/// The threads, and the device side's tasks on them.
struct Workers {
    threads: vduse_worker::Pool,
    queues: vduse_device::Pool,
}

impl Pool {
    /// Where data paths have their queues served.
    pub(crate) fn open(&self) -> PyResult<&vduse_device::Pool> {
        Ok(&self.pool.get()?.queues)
    }

    /// The workers, for other tasks.
    pub(crate) fn handle(&self) -> PyResult<vduse_worker::Workers> {
        Ok(self.pool.get()?.threads.handle())
    }
}

#[pymethods]
impl Pool {
    #[new]
    #[pyo3(
        signature = (workers = None, *, poll = true, cpus = Vec::new()),
        text_signature = "(workers=None, *, poll=True, cpus=())"
    )]
    fn new(workers: Option<usize>, poll: bool, cpus: Vec<usize>) -> PyResult<Pool> {
        if workers == Some(0) {
            return Err(PyValueError::new_err("a pool needs a worker"));
        }
        if workers.is_some() && !cpus.is_empty() {
            return Err(PyValueError::new_err("cpus say how many workers there are"));
        }
        let settings = Settings {
            workers,
            polls: poll,
            cpus,
        };
        let threads = vduse_worker::Pool::start(&settings).map_err(|error| match error {
            PoolError::System(errno) => error::errno(errno),
            PoolError::Cpu(cpu) => PyValueError::new_err(format!(
                "CPU {cpu} is not there, or not allowed to this process"
            )),
        })?;
        let queues = vduse_device::Pool::new(&threads.handle());
        Ok(Pool {
            pool: PerProcess::new(Workers { threads, queues }),
            lease: Lease::default(),
        })
    }

    #[getter]
    fn workers(&self) -> PyResult<usize> {
        Ok(self.pool.get()?.threads.workers())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let stats = self.pool.get()?.threads.stats();
        stats.iter().map(|it| stats::worker(py, it)).collect()
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let pool = self.pool.get()?;
        if Arc::strong_count(&self.lease) > 1 {
            return Err(error::in_use("pool"));
        }
        py.detach(|| pool.threads.close());
        Ok(())
    }
}

/// What stores a disk's bytes; see `_native.pyi`.
#[pyclass(frozen, subclass, module = "vduse._native")]
pub struct Backend {
    backend: PerProcess<Arc<dyn backend::Backend>>,
    /// Of its connection; a layer has that of what it lies on.
    history: Arc<History>,
    closed: AtomicBool,
    lease: Lease,
    /// Whether a layer lies on it.
    covered: Arc<AtomicBool>,
    /// Of a layer: what it lies on.
    below: Option<(Py<Backend>, Cover)>,
    /// What it cannot be without, until it is closed: the pool that serves it, or another backend.
    stands_on: Mutex<Vec<Lease>>,
}

/// A layer's claim on what lies beneath, until it is given back or dropped.
struct Cover {
    covered: Arc<AtomicBool>,
    /// Another layer may have it by now.
    given_back: AtomicBool,
}

impl Cover {
    fn take(covered: &Arc<AtomicBool>) -> PyResult<Cover> {
        match covered.swap(true, Ordering::Relaxed) {
            false => Ok(Cover {
                covered: covered.clone(),
                given_back: AtomicBool::new(false),
            }),
            true => Err(beneath()),
        }
    }

    fn give_back(&self) {
        if !self.given_back.swap(true, Ordering::Relaxed) {
            self.covered.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Counts the layers on a backend whose objects live; each holds the backend and its object.
pub struct Layers(Arc<AtomicBool>);

impl Layers {
    /// 0 or 1.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed).into()
    }
}

fn beneath() -> PyErr {
    error::os_error(Errno::BUSY, "backend lies beneath a layer: use the layer")
}

impl Backend {
    fn wrap<B: backend::Backend + 'static>(made: Result<B, backend::Error>) -> PyResult<Backend> {
        Ok(Backend::of(Arc::new(made.map_err(backend_error)?)))
    }

    /// Any backend there is.
    pub fn of(backend: Arc<dyn backend::Backend>) -> Backend {
        Backend {
            history: History::watch(&*backend),
            backend: PerProcess::new(backend),
            closed: AtomicBool::new(false),
            lease: Lease::default(),
            covered: Arc::default(),
            below: None,
            stands_on: Mutex::default(),
        }
    }

    /// A layer on `below`, which is the layer's alone until that is closed or gone.
    pub fn on(
        below: &Bound<'_, Backend>,
        make: impl FnOnce(Arc<dyn backend::Backend>) -> Arc<dyn backend::Backend>,
    ) -> PyResult<Backend> {
        Backend::try_on(below, |backend| Ok(make(backend)))
    }

    /// The same of a layer that may fail.
    pub fn try_on(
        below: &Bound<'_, Backend>,
        make: impl FnOnce(Arc<dyn backend::Backend>) -> PyResult<Arc<dyn backend::Backend>>,
    ) -> PyResult<Backend> {
        let inner = below.get();
        let backend = inner.open()?.clone();
        let cover = Cover::take(&inner.covered)?;
        if Arc::strong_count(&inner.lease) > 1 {
            return Err(error::in_use("backend"));
        }
        Ok(Backend {
            history: inner.history.clone(),
            backend: PerProcess::new(make(backend)?),
            closed: AtomicBool::new(false),
            lease: Lease::default(),
            covered: Arc::default(),
            below: Some((below.clone().unbind(), cover)),
            stands_on: Mutex::default(),
        })
    }

    /// What stands on it beside others, and keeps it open until it is closed.
    pub fn beside(
        &self,
        make: impl FnOnce(Arc<dyn backend::Backend>) -> Arc<dyn backend::Backend>,
    ) -> PyResult<Backend> {
        let (below, lease) = self.shared()?;
        let backend = Backend::of(make(below));
        backend.keep(lease);
        Ok(backend)
    }

    /// The layers on it.
    pub fn layers(&self) -> Layers {
        Layers(self.covered.clone())
    }

    /// It cannot be without this until it is closed.
    pub fn keep(&self, lease: Lease) {
        let stands_on = self.stands_on.lock();
        stands_on
            .unwrap_or_else(PoisonError::into_inner)
            .push(lease);
    }

    /// What it is, for one that shares it with others, and what keeps it open.
    pub fn shared(&self) -> PyResult<(Arc<dyn backend::Backend>, Lease)> {
        Ok((self.open()?.clone(), self.lease.clone()))
    }

    fn open(&self) -> PyResult<&Arc<dyn backend::Backend>> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(error::closed("backend"));
        }
        self.check_uncovered()?;
        self.backend.get()
    }

    /// EBUSY while it is a layer's.
    fn check_uncovered(&self) -> PyResult<()> {
        let is_open = !self.closed.load(Ordering::Relaxed);
        match is_open && self.covered.load(Ordering::Relaxed) {
            true => Err(beneath()),
            false => Ok(()),
        }
    }

    /// Nothing of it is in use any more, nor of what lies beneath.
    fn let_go(&self) {
        if let Some((below, _)) = &self.below {
            below.get().let_go();
        }
        self.stand_alone();
    }

    /// What it stood on is in use no more.
    fn stand_alone(&self) {
        *self
            .stands_on
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Vec::new();
    }

    /// It was closed, and all that lies beneath with it, if that is still its own.
    fn set_closed(&self) -> bool {
        if let Some((below, cover)) = &self.below
            && !cover.given_back.load(Ordering::Relaxed)
        {
            below.get().set_closed();
        }
        self.closed.swap(true, Ordering::Relaxed)
    }
}

#[pymethods]
impl Backend {
    #[staticmethod]
    fn null(size: u64) -> PyResult<Backend> {
        Backend::wrap(Null::new(size))
    }

    #[staticmethod]
    fn memory(size: u64) -> PyResult<Backend> {
        Backend::wrap(Memory::new(size))
    }

    #[staticmethod]
    #[pyo3(signature = (path, *, read_only = false, direct = false, engine = "auto", lock = true, lock_late = false, container = false))]
    #[expect(clippy::too_many_arguments, reason = "Python gives them by name")]
    fn file(
        py: Python<'_>,
        path: PathBuf,
        read_only: bool,
        direct: bool,
        engine: &str,
        lock: bool,
        lock_late: bool,
        container: bool,
    ) -> PyResult<Backend> {
        let options = OpenOptions {
            read_only,
            direct,
            engine: parse_engine(engine)?,
            locking: match (lock, lock_late) {
                (false, _) => Locking::Never,
                (true, false) => Locking::Open,
                (true, true) => Locking::Serving,
            },
        };
        let open = match container {
            false => File::open,
            true => File::open_container,
        };
        Backend::wrap(py.detach(|| open(&path, options)))
    }

    #[pyo3(signature = (offset, size = None))]
    fn window(&self, offset: u64, size: Option<u64>) -> PyResult<Backend> {
        let (below, lease) = self.shared()?;
        let backend = Backend::wrap(Window::new(below, Offset(offset), size.map(Length)))?;
        backend.keep(lease);
        Ok(backend)
    }

    #[getter]
    fn size(&self) -> PyResult<u64> {
        Ok(self.backend.get()?.info().size.0)
    }

    #[getter]
    fn block_size(&self) -> PyResult<u32> {
        Ok(self.backend.get()?.info().block_size)
    }

    #[getter]
    fn read_only(&self) -> PyResult<bool> {
        Ok(self.backend.get()?.info().read_only)
    }

    #[getter]
    fn can_discard(&self) -> PyResult<bool> {
        Ok(self.backend.get()?.info().can_discard)
    }

    #[getter]
    fn engine(&self) -> PyResult<&'static str> {
        Ok(self.backend.get()?.engine_name())
    }

    #[getter]
    fn overlay_allocated(&self) -> PyResult<u64> {
        Ok(self.backend.get()?.overlay_allocated())
    }

    #[getter]
    fn connection<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let backend = self.backend.get()?;
        let state = py.detach(|| self.history.state(&**backend));
        stats::connection(py, &state)
    }

    fn refresh_size(&self, py: Python<'_>) -> PyResult<u64> {
        let backend = self.open()?;
        py.detach(|| backend.refresh_size()).map_err(backend_error)
    }

    fn resize(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        // Beneath a layer, too: observers of either hear of it.
        let backend = self.backend.get()?;
        py.detach(|| backend.resize(Length(size)))
            .map_err(backend_error)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let backend = self.open()?;
        py.detach(|| backend.flush()).map_err(backend_error)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let backend = self.backend.get()?;
        if Arc::strong_count(&self.lease) > 1 {
            return Err(error::in_use("backend"));
        }
        self.check_uncovered()?;
        if self.set_closed() {
            return Ok(());
        }
        let closed = py.detach(|| backend.close()).map_err(backend_error);
        self.let_go();
        closed
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let backend = self.open()?;
        let Some((_, cover)) = &self.below else {
            return Err(PyValueError::new_err("backend is no layer: close it"));
        };
        if Arc::strong_count(&self.lease) > 1 {
            return Err(error::in_use("backend"));
        }
        self.closed.store(true, Ordering::Relaxed);
        let result = py.detach(|| backend.release());
        self.stand_alone();
        cover.give_back();
        result.map_err(backend_error)
    }

    /// A layer that no device uses belongs to its object alone, with what it lies on: a disk
    /// written in Python may hold its own layer. The disk's part breaks the cycle.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match (&self.below, self.backend.get()) {
            (Some((below, _)), Ok(backend))
                if Arc::strong_count(backend) == 1 + self.layers().count() =>
            {
                visit.call(below)
            }
            _ => Ok(()),
        }
    }
}

pub fn parse_engine(name: &str) -> PyResult<EngineChoice> {
    match name {
        "auto" => Ok(EngineChoice::Auto),
        "io_uring" => Ok(EngineChoice::IoUring),
        "threads" => Ok(EngineChoice::Threads),
        other => Err(PyValueError::new_err(format!(
            "engine {other:?} is none of auto, io_uring, threads"
        ))),
    }
}

/// All queues of one disk; see `_native.pyi`.
#[pyclass(frozen, extends = DataPath, module = "vduse._native")]
pub struct BlkDataPath(PerProcess<Arc<Disk>>);

impl BlkDataPath {
    /// What the queues share.
    pub fn disk(&self) -> PyResult<&Arc<Disk>> {
        self.0.get()
    }
}

#[pymethods]
impl BlkDataPath {
    #[new]
    #[pyo3(signature = (pool, backend, resolver, limits, serial, umem = false))]
    fn new(
        pool: &Pool,
        backend: &Backend,
        resolver: Link<'_>,
        limits: HashMap<String, u64>,
        serial: Vec<u8>,
        umem: bool,
    ) -> PyResult<PyClassInitializer<BlkDataPath>> {
        let (capacity, limits) = parse_limits(limits)?;
        let disk = Arc::new(Disk::new(
            backend.open()?.clone(),
            capacity,
            limits,
            &serial,
        ));
        let path = vduse_device::DataPath::blk(pool.open()?, resolver.hookup(umem)?, disk.clone())
            .map_err(error::errno)?;
        let base = DataPath::new(path, pool.lease.clone(), Some(backend.lease.clone()));
        let disk = BlkDataPath(PerProcess::new(disk));
        Ok(PyClassInitializer::from(base).add_subclass(disk))
    }

    fn set_capacity(slf: &Bound<'_, Self>, sectors: u64) -> PyResult<()> {
        slf.as_super().get().path()?;
        slf.get().disk()?.set_capacity(sectors);
        Ok(())
    }

    fn pause(slf: &Bound<'_, Self>, timeout: f64) -> PyResult<bool> {
        let base = slf.as_super().get();
        let (path, disk) = (base.path()?, slf.get().disk()?);
        let timeout = seconds(timeout)?;
        let is_paused = slf.py().detach(|| {
            let is_paused = path.pause(timeout);
            if is_paused {
                disk.set_backend(None);
            }
            is_paused
        });
        if is_paused {
            base.use_backend(None)?;
        }
        Ok(is_paused)
    }

    fn resume(slf: &Bound<'_, Self>, backend: &Backend) -> PyResult<()> {
        let base = slf.as_super().get();
        let (path, disk) = (base.path()?, slf.get().disk()?);
        if disk.has_backend() {
            return Err(PyValueError::new_err("data path is not paused"));
        }
        let (backend, lease) = backend.shared()?;
        base.use_backend(Some(lease))?;
        slf.py()
            .detach(|| {
                disk.set_backend(Some(backend));
                path.resume()
            })
            .map_err(backend_error)
    }
}

/// Capacity and limits of the `limits` dictionary; what is left out is 0.
fn parse_limits(given: HashMap<String, u64>) -> PyResult<(u64, Limits)> {
    let mut capacity = 0;
    let mut limits = Limits::default();
    for (name, value) in given {
        if name == "capacity" {
            capacity = value;
            continue;
        }
        let value = u32::try_from(value)
            .map_err(|_| PyValueError::new_err(format!("limit {name} is above 2^32 - 1")))?;
        match name.as_str() {
            "seg_max" => limits.seg_max = value,
            "size_max" => limits.size_max = value,
            "max_discard_sectors" => limits.max_discard_sectors = value,
            "max_discard_seg" => limits.max_discard_seg = value,
            "max_write_zeroes_sectors" => limits.max_write_zeroes_sectors = value,
            "max_write_zeroes_seg" => limits.max_write_zeroes_seg = value,
            "write_zeroes_may_unmap" => limits.write_zeroes_may_unmap = value != 0,
            "read_only" => limits.read_only = value != 0,
            // Advice to the driver; nothing is refused for them.
            "blk_size" | "discard_sector_alignment" => {}
            _ => return Err(PyValueError::new_err(format!("no such limit: {name}"))),
        }
    }
    Ok((capacity, limits))
}

/// An error of a backend as an OSError with its sentence.
pub fn backend_error(error: backend::Error) -> PyErr {
    error::os_error(error.errno, error.message)
}

/// Adds this half's classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Pool>()?;
    m.add_class::<Backend>()?;
    m.add_class::<BlkDataPath>()
}
