//! Binding of the framework half: domain, arena, lines, the virtio-blk driver.

use crate::buffer::{self, Batches, DiskRequest, Readable, Writable};
use crate::fork::PerProcess;
use crate::{error, fd, stats};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vduse_framework::blk::{self, Request, Sectors, SetupError};
use vduse_framework::{Dma, DmaError};
use vduse_histogram::Counts;
use vduse_mem::Iova;

type Counters = BTreeMap<&'static str, u64>;

/// IOVA domain of virtio_vdpa; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct Domain(PerProcess<Arc<vduse_framework::Domain>>);

impl Domain {
    /// The domain itself, for the data path.
    pub fn shared(&self) -> PyResult<&Arc<vduse_framework::Domain>> {
        self.0.get()
    }
}

#[pymethods]
impl Domain {
    #[new]
    fn new(bounce_size: u64) -> PyResult<Domain> {
        let domain = vduse_framework::Domain::new(bounce_size);
        Ok(Domain(PerProcess::new(
            domain.map_err(|error| error::io_error(&error))?,
        )))
    }

    #[getter]
    fn fd(&self) -> PyResult<c_int> {
        Ok(self.shared()?.as_fd().as_raw_fd())
    }

    #[getter]
    fn bounce_size(&self) -> PyResult<u64> {
        Ok(self.shared()?.bounce_size())
    }

    #[getter]
    fn bounce_mapped(&self) -> PyResult<bool> {
        Ok(self.shared()?.bounce_mapped())
    }

    fn entries(&self) -> PyResult<Vec<(u64, u64, u64, u8)>> {
        let entries = self.shared()?.entries().into_iter();
        Ok(entries
            .map(|entry| (entry.start.0, entry.last.0, entry.offset, entry.perm as u8))
            .collect())
    }

    fn reset_bounce_map(&self) -> PyResult<()> {
        self.shared()?.reset_bounce_map();
        Ok(())
    }

    fn reg_umem(&self, py: Python<'_>, pid: u32, uaddr: u64) -> PyResult<()> {
        let domain = self.shared()?;
        py.detach(|| domain.reg_umem(pid, uaddr))
            .map_err(error::errno)
    }

    fn dereg_umem(&self, py: Python<'_>) -> PyResult<()> {
        let domain = self.shared()?;
        py.detach(|| domain.dereg_umem()).map_err(error::errno)
    }

    #[pyo3(signature = (max_bytes = None))]
    fn reclaim(&self, py: Python<'_>, max_bytes: Option<u64>) -> PyResult<u64> {
        let domain = self.shared()?;
        py.detach(|| domain.reclaim(max_bytes))
            .map_err(|error| error::io_error(&error))
    }

    fn stats(&self, py: Python<'_>) -> PyResult<Counters> {
        // May wait: reclaim and a change of umem hold what this needs.
        let domain = self.shared()?;
        let stats = py.detach(|| domain.stats());
        let stats = stats.map_err(|error| error::io_error(&error))?;
        Ok(Counters::from([
            ("bounce_bytes_in_use", stats.bounce_in_use),
            ("bounce_bytes_allocated", stats.bounce_allocated),
            ("bounce_bytes_peak", stats.bounce_peak),
            ("bounce_bytes_reclaimed", stats.bounce_reclaimed),
            ("coherent_bytes", stats.coherent),
            ("maps", stats.maps),
            ("map_waits", stats.map_waits),
        ]))
    }
}

/// A driver's own memory; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct Arena(PerProcess<Arc<vduse_framework::Arena>>);

impl Arena {
    /// The arena itself, for the data path.
    pub fn shared(&self) -> PyResult<&Arc<vduse_framework::Arena>> {
        self.0.get()
    }
}

fn outside() -> PyErr {
    PyValueError::new_err("the range does not lie in the arena")
}

#[pymethods]
impl Arena {
    #[new]
    fn new(size: u64, iova: u64) -> PyResult<Arena> {
        let arena = vduse_framework::Arena::new(size, Iova(iova));
        Ok(Arena(PerProcess::new(
            arena.map_err(|error| error::io_error(&error))?,
        )))
    }

    #[getter]
    fn fd(&self) -> PyResult<c_int> {
        Ok(self.shared()?.as_fd().as_raw_fd())
    }

    #[getter]
    fn size(&self) -> PyResult<u64> {
        Ok(self.shared()?.size())
    }

    #[getter]
    fn iova(&self) -> PyResult<u64> {
        Ok(self.shared()?.iova().0)
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: usize,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let arena = self.shared()?;
        if length as u64 > arena.size() {
            return Err(outside());
        }
        PyBytes::new_with(py, length, |bytes| match arena.read(offset, bytes) {
            true => Ok(()),
            false => Err(outside()),
        })
    }

    fn write(&self, py: Python<'_>, offset: usize, data: PyBuffer<u8>) -> PyResult<()> {
        match self.shared()?.write(offset, &data.to_vec(py)?) {
            true => Ok(()),
            false => Err(outside()),
        }
    }

    fn truncate(&self, size: u64) -> PyResult<()> {
        let truncated = self.shared()?.truncate(size);
        truncated.map_err(|error| error::io_error(&error))
    }
}

/// Framework's end of one virtqueue's kick and irq; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct VqLine(PerProcess<Arc<vduse_framework::VqLine>>);

impl VqLine {
    /// The line itself, for the data path.
    pub fn shared(&self) -> PyResult<&Arc<vduse_framework::VqLine>> {
        self.0.get()
    }
}

#[pymethods]
impl VqLine {
    #[new]
    fn new() -> PyResult<VqLine> {
        let line = vduse_framework::VqLine::new().map_err(error::errno)?;
        Ok(VqLine(PerProcess::new(Arc::new(line))))
    }

    fn set_kickfd(&self, fd: c_int) -> PyResult<()> {
        let line = self.shared()?;
        let fd = (fd != -1).then(|| fd::dup(fd)).transpose()?;
        line.set_kickfd(fd.as_ref().map(AsFd::as_fd))
            .map_err(error::errno)
    }

    fn set_ready(&self, ready: bool) -> PyResult<()> {
        self.shared()?.set_ready(ready);
        Ok(())
    }

    fn kick(&self) -> PyResult<()> {
        self.shared()?.kick();
        Ok(())
    }

    #[getter]
    fn kicked(&self) -> PyResult<bool> {
        Ok(self.shared()?.kicked())
    }

    fn clear_kicked(&self) -> PyResult<()> {
        self.shared()?.clear_kicked();
        Ok(())
    }

    #[getter]
    fn callfd(&self) -> PyResult<c_int> {
        Ok(self.shared()?.with_callfd(|fd| fd.as_raw_fd()))
    }

    fn set_callfd(&self, fd: c_int) -> PyResult<()> {
        let line = self.shared()?;
        let fd = (fd != -1).then(|| fd::dup(fd)).transpose()?;
        line.set_callfd(fd.as_ref().map(AsFd::as_fd))
            .map_err(error::errno)
    }

    fn inject(&self) -> PyResult<()> {
        self.shared()?.inject();
        Ok(())
    }

    fn stats(&self) -> PyResult<Counters> {
        let stats = self.shared()?.stats();
        Ok(Counters::from([
            ("kicks", stats.kicks),
            ("irqs", stats.irqs),
        ]))
    }
}

/// The rule for a device's irqs; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct IrqGate(PerProcess<Arc<vduse_framework::IrqGate>>);

impl IrqGate {
    /// The gate itself, for whoever takes irqs.
    pub fn shared(&self) -> PyResult<&Arc<vduse_framework::IrqGate>> {
        self.0.get()
    }
}

#[pymethods]
impl IrqGate {
    #[new]
    fn new(lines: Vec<PyRef<'_, VqLine>>) -> PyResult<IrqGate> {
        let lines = lines.iter().map(|line| line.shared().cloned());
        let gate = vduse_framework::IrqGate::new(lines.collect::<PyResult<Vec<_>>>()?);
        Ok(IrqGate(PerProcess::new(Arc::new(gate))))
    }

    fn set_driver_ok(&self, driver_ok: bool) -> PyResult<()> {
        self.shared()?.set_driver_ok(driver_ok);
        Ok(())
    }

    fn set_broken(&self) -> PyResult<()> {
        self.shared()?.set_broken();
        Ok(())
    }

    fn inject(&self, index: u32) -> PyResult<()> {
        let injected = self.shared()?.inject(index);
        injected.map_err(|error| error::os_error(error.errno(), error))
    }
}

/// Kick eventfds of drivers in other hands; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct KickRelay(PerProcess<Mutex<Option<vduse_framework::KickRelay>>>);

impl KickRelay {
    fn with<T>(&self, f: impl FnOnce(&vduse_framework::KickRelay) -> PyResult<T>) -> PyResult<T> {
        let relay = self.0.get()?;
        let relay = relay.lock().unwrap_or_else(PoisonError::into_inner);
        f(relay.as_ref().ok_or_else(|| error::closed("kick relay"))?)
    }
}

#[pymethods]
impl KickRelay {
    #[new]
    fn new() -> PyResult<KickRelay> {
        let relay = vduse_framework::KickRelay::new().map_err(error::errno)?;
        Ok(KickRelay(PerProcess::new(Mutex::new(Some(relay)))))
    }

    fn watch(&self, fd: c_int, line: &VqLine) -> PyResult<u64> {
        let (fd, line) = (fd::dup(fd)?, line.shared()?.clone());
        self.with(|relay| relay.watch(fd.as_fd(), line).map_err(error::errno))
    }

    fn unwatch(&self, watch: u64) -> PyResult<()> {
        self.with(|relay| {
            relay.unwatch(watch);
            Ok(())
        })
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let relay = self.0.get()?;
        let ended = relay.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(ended));
        Ok(())
    }
}

/// Either kind of memory a driver can work with.
#[derive(FromPyObject)]
pub enum Memory<'py> {
    /// The way of virtio_vdpa.
    Domain(Bound<'py, Domain>),
    /// The way of vhost_vdpa.
    Arena(Bound<'py, Arena>),
}

impl Memory<'_> {
    /// The memory itself, for the data path.
    pub fn shared(&self) -> PyResult<Arc<dyn Dma>> {
        Ok(match self {
            Memory::Domain(domain) => Arc::clone(domain.get().shared()?) as _,
            Memory::Arena(arena) => Arc::clone(arena.get().shared()?) as _,
        })
    }
}

/// The queue that batches go to. Waiting calls are spread over all queues by thread.
const BATCH_QUEUE: usize = 0;

/// The driver's side of virtio-blk; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct BlkDriver(PerProcess<Batches>);

impl BlkDriver {
    /// The driver itself, for the data path.
    pub fn shared(&self) -> PyResult<&Arc<blk::BlkDriver>> {
        Ok(self.0.get()?.driver())
    }

    fn run(&self, py: Python<'_>, request: DiskRequest) -> PyResult<u64> {
        buffer::run(py, self.shared()?, request)
    }
}

#[pymethods]
impl BlkDriver {
    #[new]
    fn new(
        dma: Memory<'_>,
        features: u64,
        config: &[u8],
        queue_sizes: Vec<u16>,
        lines: Vec<Bound<'_, VqLine>>,
    ) -> PyResult<BlkDriver> {
        let dma = dma.shared()?;
        let lines = lines.iter().map(|line| line.get().shared().cloned());
        let lines = lines.collect::<PyResult<Vec<_>>>()?;
        let driver = blk::BlkDriver::new(dma, features, config, &queue_sizes, &lines);
        let driver = driver.map_err(setup_error)?;
        Ok(BlkDriver(PerProcess::new(Batches::new(
            &driver,
            BATCH_QUEUE,
        )?)))
    }

    fn areas(&self, index: usize) -> PyResult<(u64, u64, u64)> {
        let areas = self.shared()?.areas(index);
        let [desc, driver, device] =
            areas.ok_or_else(|| PyValueError::new_err(format!("no queue {index}")))?;
        Ok((desc.0, driver.0, device.0))
    }

    fn start(&self) -> PyResult<()> {
        self.shared()?.start();
        Ok(())
    }

    fn stop(&self, py: Python<'_>, errno: c_int) -> PyResult<()> {
        if !(1..4096).contains(&errno) {
            return Err(PyValueError::new_err(format!("{errno} is no errno")));
        }
        let driver = self.shared()?;
        py.detach(|| driver.stop(Errno::from_raw_os_error(errno)));
        Ok(())
    }

    fn hold(&self, py: Python<'_>, submissions: bool, completions: bool) -> PyResult<()> {
        let driver = self.shared()?;
        py.detach(|| {
            driver.hold(blk::Hold {
                submissions,
                completions,
            });
        });
        Ok(())
    }

    fn in_flight(&self, py: Python<'_>) -> PyResult<usize> {
        let driver = self.shared()?;
        Ok(py.detach(|| driver.in_flight()))
    }

    fn renew(&self, py: Python<'_>) -> PyResult<()> {
        let driver = self.shared()?;
        py.detach(|| driver.renew()).map_err(setup_error)
    }

    fn set_config(&self, config: &[u8]) -> PyResult<()> {
        self.shared()?.set_config(config).map_err(setup_error)
    }

    #[getter]
    fn size(&self) -> PyResult<u64> {
        let capacity = self.shared()?.capacity();
        capacity
            .bytes()
            .ok_or_else(|| error::errno(Errno::OVERFLOW))
    }

    #[getter]
    fn read_only(&self) -> PyResult<bool> {
        Ok(self.shared()?.read_only())
    }

    #[getter]
    fn features(&self) -> PyResult<u64> {
        Ok(self.shared()?.features())
    }

    fn preadinto(&self, offset: i64, buffer: &Bound<'_, PyAny>) -> PyResult<u64> {
        let request = DiskRequest::Read(sectors(offset)?, Writable::hold(buffer)?);
        self.run(buffer.py(), request)
    }

    fn pwrite(&self, offset: i64, data: &Bound<'_, PyAny>) -> PyResult<u64> {
        let request = DiskRequest::Write(sectors(offset)?, Readable::hold(data)?);
        self.run(data.py(), request)
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.run(py, DiskRequest::Plain(Request::Flush))?;
        Ok(())
    }

    fn discard(&self, py: Python<'_>, offset: i64, length: i64) -> PyResult<()> {
        self.run(py, discard(offset, length)?)?;
        Ok(())
    }

    #[pyo3(signature = (offset, length, unmap = false))]
    fn write_zeroes(&self, py: Python<'_>, offset: i64, length: i64, unmap: bool) -> PyResult<()> {
        self.run(py, write_zeroes(offset, length, unmap)?)?;
        Ok(())
    }

    fn serial<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let serial = buffer::serial(py, self.shared()?)?;
        Ok(PyBytes::new(py, &serial))
    }

    fn submit(
        &self,
        py: Python<'_>,
        batch: Vec<(String, i64, Bound<'_, PyAny>)>,
    ) -> PyResult<Vec<u64>> {
        let batches = self.0.get()?;
        let requests = batch.iter().map(|(op, offset, with)| match op.as_str() {
            "read" => Ok(DiskRequest::Read(sectors(*offset)?, Writable::hold(with)?)),
            "write" => Ok(DiskRequest::Write(sectors(*offset)?, Readable::hold(with)?)),
            "flush" => Ok(DiskRequest::Plain(Request::Flush)),
            "discard" => discard(*offset, with.extract()?),
            "write_zeroes" => write_zeroes(*offset, with.extract()?, false),
            _ => Err(PyValueError::new_err(format!("unknown request {op:?}"))),
        });
        Ok(batches.submit(py, requests.collect::<PyResult<_>>()?))
    }

    #[pyo3(signature = (minimum = 1, timeout = None))]
    fn reap(
        &self,
        py: Python<'_>,
        minimum: usize,
        timeout: Option<f64>,
    ) -> PyResult<Vec<(u64, i64)>> {
        let timeout = timeout.map(Duration::try_from_secs_f64).transpose();
        let timeout =
            timeout.map_err(|error| PyValueError::new_err(format!("timeout: {error}")))?;
        self.0.get()?.reap(py, minimum, timeout)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        // May wait: a queue's lock is held while data is copied.
        let driver = self.shared()?;
        let queues = py.detach(|| driver.queue_stats());
        let (mut total, mut batches) = (blk::BlkStats::default(), Counts::default());
        let each = PyDict::new(py);
        for (index, (stats, batch_requests)) in queues.iter().enumerate() {
            total += *stats;
            batches.add(batch_requests);
            each.set_item(index, stats::driver(py, *stats, batch_requests)?)?;
        }
        let dict = stats::driver(py, total, &batches)?;
        dict.set_item("queues", each)?;
        Ok(dict)
    }
}

/// Bytes as sectors. OSError EINVAL for a negative number, or no whole sectors.
fn sectors(bytes: i64) -> PyResult<Sectors> {
    u64::try_from(bytes)
        .ok()
        .and_then(Sectors::from_bytes)
        .ok_or_else(|| error::os_error(Errno::INVAL, format!("{bytes} bytes are no whole sectors")))
}

fn discard(offset: i64, length: i64) -> PyResult<DiskRequest> {
    Ok(DiskRequest::Plain(Request::Discard {
        sector: sectors(offset)?,
        count: sectors(length)?,
    }))
}

fn write_zeroes(offset: i64, length: i64, unmap: bool) -> PyResult<DiskRequest> {
    Ok(DiskRequest::Plain(Request::WriteZeroes {
        sector: sectors(offset)?,
        count: sectors(length)?,
        unmap,
    }))
}

fn setup_error(setup: SetupError) -> PyErr {
    let errno = match setup {
        SetupError::Dma(DmaError::Memory(errno)) | SetupError::Eventfd(errno) => errno,
        SetupError::Dma(DmaError::NoSpace) => Errno::NOMEM,
        _ => Errno::INVAL,
    };
    error::os_error(errno, setup)
}

/// Adds this half's classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Domain>()?;
    m.add_class::<Arena>()?;
    m.add_class::<VqLine>()?;
    m.add_class::<IrqGate>()?;
    m.add_class::<KickRelay>()?;
    m.add_class::<BlkDriver>()
}
