//! Binding of a device's data path, whatever serves it; see `_native.pyi`.

use crate::fork::PerProcess;
use crate::{error, fd, stats};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vduse_device::{Event, QueueSetup, StartError};
use vduse_mem::{DirtyLog, Iova};
use vduse_ring::{DeviceQueue, Layout, QueueState, RingError};

const F_INDIRECT_DESC: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const F_RING_PACKED: u64 = 1 << 34;

/// Longer waits are as good as for ever.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Kept by who uses a pool or a backend; as long as there is one, it is not closed.
pub type Lease = Arc<()>;

/// All queues of one device: what is the same for every device type; see `_native.pyi`.
#[pyclass(frozen, subclass, module = "vduse._native")]
pub struct DataPath(PerProcess<Mutex<Option<OpenPath>>>);

/// A data path that is not closed, and what it uses.
struct OpenPath {
    path: Arc<vduse_device::DataPath>,
    _pool: Lease,
    backend: Option<Lease>,
}

impl DataPath {
    /// Of a path that is served by `pool`, and uses `backend`.
    pub fn new(path: vduse_device::DataPath, pool: Lease, backend: Option<Lease>) -> DataPath {
        let path = Arc::new(path);
        DataPath(PerProcess::new(Mutex::new(Some(OpenPath {
            path,
            _pool: pool,
            backend,
        }))))
    }

    /// It uses this backend from now on, until it is closed, and the former one no more.
    pub fn use_backend(&self, backend: Option<Lease>) -> PyResult<()> {
        let mut open = self.0.get()?.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &mut *open {
            open.backend = backend;
        }
        Ok(())
    }

    /// The path itself. ValueError after close.
    pub fn path(&self) -> PyResult<Arc<vduse_device::DataPath>> {
        let open = self.0.get()?.lock().unwrap_or_else(PoisonError::into_inner);
        match &*open {
            Some(open) => Ok(open.path.clone()),
            None => Err(error::closed("data path")),
        }
    }
}

#[pymethods]
impl DataPath {
    #[staticmethod]
    fn inflight_size(size: u16, features: u64) -> u64 {
        DeviceQueue::inflight_size(&layout(size, features))
    }

    #[pyo3(signature = (index, *, size, features, areas, state, kickfd, callfd, inflight))]
    #[expect(clippy::too_many_arguments, reason = "Python gives them by name")]
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

    fn set_kickfd(&self, py: Python<'_>, index: u32, fd: c_int) -> PyResult<()> {
        let path = self.path()?;
        let kick = fd::dup(fd)?;
        py.detach(|| path.set_kick(index, kick))
            .map_err(start_error)
    }

    fn invalidate(&self, py: Python<'_>, start: u64, last: u64, timeout: f64) -> PyResult<bool> {
        let path = self.path()?;
        let timeout = seconds(timeout)?;
        Ok(py.detach(|| path.invalidate(Iova(start), Iova(last), timeout)))
    }

    #[pyo3(signature = (log, used, timeout))]
    fn set_log(
        &self,
        py: Python<'_>,
        log: Option<(c_int, u64, u64)>,
        used: BTreeMap<u32, u64>,
        timeout: f64,
    ) -> PyResult<bool> {
        let path = self.path()?;
        let timeout = seconds(timeout)?;
        let log = match log {
            None => None,
            Some((file, offset, size)) => {
                let file = fd::dup(file)?;
                let used = used.into_iter().map(|(queue, at)| (queue, Iova(at)));
                Some(DirtyLog::map(file.as_fd(), offset, size, used.collect())?)
            }
        };
        Ok(py.detach(|| path.set_log(log, timeout)))
    }

    fn reset(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let path = self.path()?;
        let timeout = seconds(timeout)?;
        Ok(py.detach(|| path.reset(timeout)))
    }

    #[getter]
    fn first_worker(&self) -> PyResult<usize> {
        Ok(self.path()?.first_worker())
    }

    #[getter]
    fn on_worker(&self) -> PyResult<bool> {
        Ok(self.path()?.is_on_worker())
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
                Event::Failed { queue, message } => ("failed", queue, message),
                Event::Resized { size } => ("resized", 0, size.to_string()),
                Event::Umem { message } => ("umem", 0, message),
                Event::Connection { message } => ("connection", 0, message),
            })
            .collect())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let path = self.path()?;
        let (total, queues) = py.detach(|| path.stats());
        let dict = stats::device(py, &total)?;
        let each = PyDict::new(py);
        for (index, queue) in &queues {
            let queue = stats::device(py, queue)?;
            queue.del_item("iotlb_misses")?; // the device's alone
            each.set_item(index, queue)?;
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

/// A ring by its size and the features that the driver chose.
pub fn layout(size: u16, features: u64) -> Layout {
    Layout {
        size,
        packed: features & F_RING_PACKED != 0,
        event_idx: features & F_EVENT_IDX != 0,
        indirect: features & F_INDIRECT_DESC != 0,
    }
}

/// A call fd, or none for -1.
fn call(number: c_int) -> PyResult<Option<OwnedFd>> {
    (number != -1).then(|| fd::dup(number)).transpose()
}

/// A timeout. ValueError where it is negative.
pub fn seconds(timeout: f64) -> PyResult<Duration> {
    if timeout.is_nan() || timeout < 0.0 {
        return Err(PyValueError::new_err("a timeout is not negative"));
    }
    Ok(Duration::try_from_secs_f64(timeout).map_or(LONGEST, |timeout| timeout.min(LONGEST)))
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

/// Adds this half's base class to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<DataPath>()
}
