//! Binding of the device half; see `_native.pyi` for what each method promises.

use crate::channel::CallSocket;
use crate::fork::PerProcess;
use crate::{error, fd};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::collections::HashMap;
use std::ffi::c_int;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vduse_device::backend::{self, EngineChoice, File, Memory, Null, OpenOptions};
use vduse_device::{DataPath, Disk, Event, Hookup, Limits, QueueSetup, StartError};
use vduse_mem::Iova;
use vduse_ring::{DeviceQueue, Layout, QueueState, RingError};

const F_INDIRECT_DESC: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const F_RING_PACKED: u64 = 1 << 34;

/// Longer waits are as good as for ever.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Kept by who uses a pool or a backend; as long as there is one, it is not closed.
type Lease = Arc<()>;

/// The worker threads; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct Pool {
    pool: PerProcess<vduse_device::Pool>,
    lease: Lease,
}

#[pymethods]
impl Pool {
    #[new]
    #[pyo3(signature = (workers = None))]
    fn new(workers: Option<usize>) -> PyResult<Pool> {
        if workers == Some(0) {
            return Err(PyValueError::new_err("a pool needs a worker"));
        }
        let pool = vduse_device::Pool::new(workers).map_err(error::errno)?;
        Ok(Pool {
            pool: PerProcess::new(pool),
            lease: Lease::default(),
        })
    }

    #[getter]
    fn workers(&self) -> PyResult<usize> {
        Ok(self.pool.get()?.workers())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let pool = self.pool.get()?;
        if Arc::strong_count(&self.lease) > 1 {
            return Err(error::in_use("pool"));
        }
        py.detach(|| pool.close());
        Ok(())
    }
}

/// What stores a disk's bytes; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct Backend {
    backend: PerProcess<Arc<dyn backend::Backend>>,
    closed: AtomicBool,
    lease: Lease,
}

impl Backend {
    fn wrap<B: backend::Backend + 'static>(made: Result<B, backend::Error>) -> PyResult<Backend> {
        Ok(Backend {
            backend: PerProcess::new(Arc::new(made.map_err(backend_error)?)),
            closed: AtomicBool::new(false),
            lease: Lease::default(),
        })
    }

    fn open(&self) -> PyResult<&Arc<dyn backend::Backend>> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(error::closed("backend"));
        }
        self.backend.get()
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
    #[pyo3(signature = (path, *, read_only = false, direct = false, engine = "auto", lock = true))]
    fn file(
        py: Python<'_>,
        path: PathBuf,
        read_only: bool,
        direct: bool,
        engine: &str,
        lock: bool,
    ) -> PyResult<Backend> {
        let engine = match engine {
            "auto" => EngineChoice::Auto,
            "io_uring" => EngineChoice::IoUring,
            "threads" => EngineChoice::Threads,
            other => {
                return Err(PyValueError::new_err(format!(
                    "engine {other:?} is none of auto, io_uring, threads"
                )));
            }
        };
        let options = OpenOptions {
            read_only,
            direct,
            engine,
            lock,
        };
        Backend::wrap(py.detach(|| File::open(&path, options)))
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

    fn refresh_size(&self, py: Python<'_>) -> PyResult<u64> {
        let backend = self.open()?;
        py.detach(|| backend.refresh_size()).map_err(backend_error)
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
        if self.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        py.detach(|| backend.close()).map_err(backend_error)
    }
}

/// A ring by its size and the features that the driver chose.
fn layout(size: u16, features: u64) -> Layout {
    Layout {
        size,
        packed: features & F_RING_PACKED != 0,
        event_idx: features & F_EVENT_IDX != 0,
        indirect: features & F_INDIRECT_DESC != 0,
    }
}

/// All queues of one device; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct BlkDataPath(PerProcess<Mutex<Option<OpenPath>>>);

/// A data path that is not closed, and what it uses.
struct OpenPath {
    path: Arc<DataPath>,
    disk: Arc<Disk>,
    _leases: [Lease; 2],
}

impl BlkDataPath {
    fn open<T>(&self, get: impl FnOnce(&OpenPath) -> T) -> PyResult<T> {
        let open = self.0.get()?.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref()
            .map(get)
            .ok_or_else(|| error::closed("data path"))
    }

    fn path(&self) -> PyResult<Arc<DataPath>> {
        self.open(|open| open.path.clone())
    }
}

#[pymethods]
impl BlkDataPath {
    #[new]
    fn new(
        pool: &Pool,
        backend: &Backend,
        resolver: &CallSocket,
        limits: HashMap<String, u64>,
        serial: Vec<u8>,
    ) -> PyResult<BlkDataPath> {
        let (capacity, limits) = parse_limits(limits)?;
        let socket = resolver.shared()?;
        let hookup = Hookup {
            resolver: socket.clone(),
            irq_sink: socket,
        };
        let disk = Disk::new(backend.open()?.clone(), capacity, limits, &serial);
        let disk = Arc::new(disk);
        let path = DataPath::blk(pool.pool.get()?, hookup, disk.clone()).map_err(error::errno)?;
        let open = OpenPath {
            path: Arc::new(path),
            disk,
            _leases: [pool.lease.clone(), backend.lease.clone()],
        };
        Ok(BlkDataPath(PerProcess::new(Mutex::new(Some(open)))))
    }

    #[staticmethod]
    fn inflight_size(size: u16, features: u64) -> u64 {
        DeviceQueue::inflight_size(&layout(size, features))
    }

    #[pyo3(signature = (index, *, size, features, areas, state, kickfd, callfd, inflight))]
    #[allow(clippy::too_many_arguments)] // as many as a queue has
    fn start_queue(
        &self,
        py: Python<'_>,
        index: u32,
        size: u16,
        features: u64,
        areas: (u64, u64, u64),
        state: &Bound<'_, PyTuple>,
        kickfd: c_int,
        callfd: c_int,
        inflight: Option<(c_int, u64)>,
    ) -> PyResult<()> {
        let path = self.path()?;
        let packed = features & F_RING_PACKED != 0;
        let setup = QueueSetup {
            layout: layout(size, features),
            features,
            areas: [Iova(areas.0), Iova(areas.1), Iova(areas.2)],
            state: parse_state(state, packed)?,
            kick: fd::dup(kickfd)?,
            call: call(callfd)?,
            inflight: inflight
                .map(|(file, offset)| Ok::<_, PyErr>((fd::dup(file)?, offset)))
                .transpose()?,
        };
        py.detach(|| path.start_queue(index, setup))
            .map_err(start_error)
    }

    fn stop_queue<'py>(
        &self,
        py: Python<'py>,
        index: u32,
        timeout: f64,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let path = self.path()?;
        let timeout = seconds(timeout)?;
        match py.detach(|| path.stop_queue(index, timeout)) {
            Ok(Some(state)) => state_tuple(py, state).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(PyValueError::new_err(error.to_string())),
        }
    }

    fn queue_running(&self, index: u32) -> PyResult<bool> {
        Ok(self.path()?.queue_running(index))
    }

    fn set_callfd(&self, py: Python<'_>, index: u32, fd: c_int) -> PyResult<()> {
        let path = self.path()?;
        let call = call(fd)?;
        py.detach(|| path.set_call(index, call))
            .map_err(start_error)
    }

    fn invalidate(&self, py: Python<'_>, start: u64, last: u64, timeout: f64) -> PyResult<bool> {
        let path = self.path()?;
        let timeout = seconds(timeout)?;
        Ok(py.detach(|| path.invalidate(Iova(start), Iova(last), timeout)))
    }

    fn reset(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let path = self.path()?;
        let timeout = seconds(timeout)?;
        Ok(py.detach(|| path.reset(timeout)))
    }

    fn set_capacity(&self, sectors: u64) -> PyResult<()> {
        self.open(|open| open.disk.set_capacity(sectors))
    }

    #[getter]
    fn event_fd(&self) -> PyResult<c_int> {
        Ok(self.path()?.event_fd().as_raw_fd())
    }

    fn events(&self) -> PyResult<Vec<(&'static str, u32, String)>> {
        let events = self.path()?.events().into_iter();
        Ok(events
            .map(|event| match event {
                Event::Broken { queue, message } => ("broken", queue, message),
                Event::Resized { size } => ("resized", 0, size.to_string()),
                Event::Connection { message } => ("connection", 0, message),
            })
            .collect())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (total, queues) = self.path()?.stats();
        let dict = PyDict::new(py);
        for (name, value) in total.items() {
            dict.set_item(name, value)?;
        }
        let each = PyDict::new(py);
        for (index, stats) in queues {
            let counts: HashMap<&str, u64> = stats.items().into_iter().collect();
            each.set_item(index, counts)?;
        }
        dict.set_item("queues", each)?;
        Ok(dict)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let open = self
            .0
            .get()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(open) = open {
            py.detach(|| open.path.close());
        }
        Ok(())
    }
}

/// A call fd, or none for -1.
fn call(number: c_int) -> PyResult<Option<OwnedFd>> {
    (number != -1).then(|| fd::dup(number)).transpose()
}

fn seconds(timeout: f64) -> PyResult<Duration> {
    if timeout.is_nan() || timeout < 0.0 {
        return Err(PyValueError::new_err("a timeout is not negative"));
    }
    Ok(Duration::try_from_secs_f64(timeout).map_or(LONGEST, |timeout| timeout.min(LONGEST)))
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

fn parse_state(state: &Bound<'_, PyTuple>, packed: bool) -> PyResult<QueueState> {
    if packed {
        let (avail_index, avail_wrap, used_index, used_wrap): (u16, u16, u16, u16) =
            state.extract()?;
        return Ok(QueueState::Packed {
            avail_index,
            avail_wrap: avail_wrap != 0,
            used_index,
            used_wrap: used_wrap != 0,
        });
    }
    let (avail_index,): (u16,) = state.extract()?;
    Ok(QueueState::Split { avail_index })
}

fn state_tuple(py: Python<'_>, state: QueueState) -> PyResult<Bound<'_, PyTuple>> {
    match state {
        QueueState::Split { avail_index } => (avail_index,).into_pyobject(py),
        QueueState::Packed {
            avail_index,
            avail_wrap,
            used_index,
            used_wrap,
        } => (
            avail_index,
            u16::from(avail_wrap),
            used_index,
            u16::from(used_wrap),
        )
            .into_pyobject(py),
    }
}

fn backend_error(error: backend::Error) -> PyErr {
    error::os_error(error.errno, error.message)
}

fn start_error(error: StartError) -> PyErr {
    use rustix::io::Errno;
    let errno = match &error {
        StartError::Running(_) => Errno::BUSY,
        StartError::Ring(RingError::Fault(_)) => Errno::FAULT,
        StartError::Stopped(_) | StartError::Ring(_) => Errno::INVAL,
        // epoll's word for a file that cannot be polled.
        StartError::System(_, Errno::PERM) => Errno::INVAL,
        StartError::System(_, errno) => *errno,
        StartError::Backend(error) => error.errno,
    };
    error::os_error(errno, error)
}

/// Adds this half's classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Pool>()?;
    m.add_class::<Backend>()?;
    m.add_class::<BlkDataPath>()
}
