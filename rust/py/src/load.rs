//! Binding of the load generator: builds an engine, runs the load without the GIL.

use crate::framework::{Arena, BlkDriver, Domain, VqLine};
use crate::{error, stats};
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use vduse_load::{
    Baseline, Direction, Engine, EngineError, Interrupted, LoadError, Op, Ours, Phase, Progress,
    Report, Spec, Stop, VdpaPort, VirtioDrivers, run, virtio_drivers_entropy,
};

/// A :class:`vduse.testing.load.Spec` as a dict.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct SpecArgs {
    op: String,
    block_size: u32,
    depth: u32,
    #[pyo3(default)]
    requests: Option<u64>,
    #[pyo3(default)]
    seconds: Option<f64>,
    #[pyo3(default)]
    seed: u64,
    #[pyo3(default)]
    verify: bool,
    #[pyo3(default)]
    span: Option<u64>,
    #[pyo3(default = 50)]
    reads: u32,
    #[pyo3(default)]
    poll: bool,
    #[pyo3(default)]
    patience: Option<f64>,
}

fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| PyValueError::new_err(format!("{name}: {error}")))
}

impl SpecArgs {
    /// ValueError.
    pub fn check(self) -> PyResult<Spec> {
        let stop = match (self.requests, self.seconds) {
            (Some(requests), None) => Stop::Requests(requests),
            (None, Some(seconds)) => Stop::After(duration("seconds", seconds)?),
            _ => return Err(PyValueError::new_err("either requests or seconds")),
        };
        Ok(Spec {
            op: Op::from_name(&self.op)
                .ok_or_else(|| PyValueError::new_err(format!("unknown op {:?}", self.op)))?,
            block_size: self.block_size,
            depth: self.depth,
            stop,
            seed: self.seed,
            verify: self.verify,
            span: self.span,
            reads: self.reads,
            poll: self.poll,
            patience: self
                .patience
                .map(|seconds| duration("patience", seconds))
                .transpose()?,
        })
    }
}

/// OSError, or RuntimeError in the words of the driver.
pub fn engine_error(error: EngineError) -> PyErr {
    match error {
        EngineError::Os(what, errno) => error::os_error(errno, format_args!("{what}: {errno}")),
        EngineError::Driver(..) => PyRuntimeError::new_err(error.to_string()),
    }
}

/// Makes an engine and runs the load on it.
fn load<'py, E: Engine>(
    py: Python<'py>,
    spec: &Spec,
    engine: impl FnOnce() -> Result<E, EngineError> + Send,
) -> PyResult<Bound<'py, PyDict>> {
    let report = drive(py, None, |interrupted| {
        run(&mut engine()?, spec, interrupted)
    })?;
    to_dict(py, &report)
}

/// Runs a load without the GIL but for a look at signals about ten times a second, and for
/// `progress(phase, requests, blocks)`, whose exception ends it. The panic of an engine is its
/// error: not all were written here.
pub fn drive<R: Send>(
    py: Python<'_>,
    progress: Option<&Py<PyAny>>,
    work: impl FnOnce(Interrupted<'_>) -> Result<R, LoadError> + Send,
) -> PyResult<R> {
    let mut raised = None;
    let mut interrupted = |at: Progress| {
        let tell = |py: Python<'_>| {
            py.check_signals()?;
            match progress {
                Some(progress) => progress
                    .call1(py, (phase(at.phase), at.requests, at.blocks))
                    .map(drop),
                None => Ok(()),
            }
        };
        Python::attach(tell)
            .map_err(|error| raised = Some(error))
            .is_err()
    };
    let interrupted: &mut (dyn FnMut(Progress) -> bool + Send) = &mut interrupted;
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(|| work(&mut |at| interrupted(at)))));
    match outcome {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(LoadError::Interrupted)) => {
            Err(raised.unwrap_or_else(|| PyRuntimeError::new_err("interrupted")))
        }
        Ok(Err(LoadError::Engine(error))) => Err(engine_error(error)),
        Ok(Err(error @ LoadError::Stalled { .. })) => {
            Err(PyTimeoutError::new_err(error.to_string()))
        }
        Ok(Err(error @ (LoadError::Spec(_) | LoadError::NeverFits(_)))) => {
            Err(PyValueError::new_err(error.to_string()))
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(PyRuntimeError::new_err(format!(
                "the driver panicked: {text}"
            )))
        }
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Filling => "filling",
        Phase::Load => "load",
        Phase::ReadingBack => "reading back",
    }
}

/// A report as :class:`vduse.testing.load.Report` takes it.
pub fn to_dict<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("requests", report.requests)?;
    dict.set_item("bytes", report.bytes)?;
    dict.set_item("seconds", report.elapsed.as_secs_f64())?;
    dict.set_item("cpu_seconds", report.thread_cpu.as_secs_f64())?;
    dict.set_item("process_cpu_seconds", report.process_cpu.as_secs_f64())?;
    dict.set_item("errors", report.errors)?;
    dict.set_item("messages", &report.messages)?;
    dict.set_item(
        "latency_ns",
        stats::percentiles(py, &report.latency.counts())?,
    )?;
    Ok(dict)
}

#[pyfunction]
fn copy_baseline<'py>(
    py: Python<'py>,
    block_size: u32,
    depth: u32,
    requests: u64,
    write: bool,
    others: u32,
) -> PyResult<Bound<'py, PyDict>> {
    let direction = match write {
        true => Direction::Write,
        false => Direction::Read,
    };
    let report = py.detach(|| {
        let mut baseline = Baseline::new(depth, others, block_size)?;
        Ok::<_, std::io::Error>(baseline.copy(requests, direction))
    })?;
    to_dict(py, &report)
}

/// A :class:`vduse.bus.vdpa.VdpaDevice`; its methods are called once a device, with the GIL.
struct PyVdpa(Py<PyAny>);

impl PyVdpa {
    fn call<T>(&self, f: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> Result<T, EngineError> {
        Python::attach(|py| f(self.0.bind(py)))
            .map_err(|error| EngineError::Driver("vDPA device", error.to_string()))
    }
}

impl VdpaPort for PyVdpa {
    fn device_features(&self) -> Result<u64, EngineError> {
        self.call(|device| device.call_method0("get_device_features")?.extract())
    }

    fn set_driver_features(&self, features: u64) -> Result<(), EngineError> {
        self.call(|device| {
            device
                .call_method1("set_driver_features", (features,))
                .map(drop)
        })
    }

    fn status(&self) -> Result<u8, EngineError> {
        self.call(|device| device.call_method0("get_status")?.extract())
    }

    fn set_status(&self, status: u8) -> Result<(), EngineError> {
        self.call(|device| {
            match status {
                0 => device.call_method0("reset"),
                _ => device.call_method1("set_status", (status,)),
            }
            .map(drop)
        })
    }

    fn max_queue_size(&self) -> Result<u32, EngineError> {
        self.call(|device| device.call_method0("get_vq_num_max")?.extract())
    }

    fn set_queue(&self, index: u16, size: u32, areas: [u64; 3]) -> Result<(), EngineError> {
        let [desc, driver, used] = areas;
        self.call(|device| {
            device.call_method1("set_vq_num", (index, size))?;
            device.call_method1("set_vq_address", (index, desc, driver, used))?;
            device.call_method1("set_vq_state", (index, (0,)))?;
            device.call_method1("set_vq_ready", (index, true)).map(drop)
        })
    }

    fn config(&self, offset: u32, out: &mut [u8]) -> Result<(), EngineError> {
        self.call(|device| {
            let config = device.call_method1("get_config", (offset, out.len()))?;
            let config: &[u8] = config.extract()?;
            out.copy_from_slice(config.get(..out.len()).ok_or_else(|| {
                PyValueError::new_err(format!("{} bytes of config", config.len()))
            })?);
            Ok(())
        })
    }
}

#[pyfunction]
#[pyo3(signature = (driver, spec, arena = None))]
fn load_ours<'py>(
    py: Python<'py>,
    driver: &BlkDriver,
    spec: SpecArgs,
    arena: Option<&Arena>,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = spec.check()?;
    let driver = driver.shared()?.clone();
    let arena = arena.map(Arena::shared).transpose()?.cloned();
    load(py, &spec, move || {
        Ours::new(&driver, arena, spec.depth, spec.block_size)
    })
}

#[pyfunction]
fn load_virtio_drivers<'py>(
    py: Python<'py>,
    device: Bound<'py, PyAny>,
    spec: SpecArgs,
) -> PyResult<Bound<'py, PyDict>> {
    let spec = spec.check()?;
    let (dma, line) = parts(&device)?;
    let port = PyVdpa(device.unbind());
    load(py, &spec, move || {
        VirtioDrivers::new(dma, Box::new(port), line, spec.depth, spec.block_size)
    })
}

#[pyfunction]
fn entropy_virtio_drivers<'py>(
    py: Python<'py>,
    device: Bound<'py, PyAny>,
    length: usize,
    part: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let (dma, line) = parts(&device)?;
    let port = PyVdpa(device.unbind());
    let mut out = vec![0; length];
    py.detach(|| virtio_drivers_entropy(dma, Box::new(port), line, &mut out, part.max(1)))
        .map_err(engine_error)?;
    Ok(PyBytes::new(py, &out))
}

/// `change` is called with the GIL, and its error is what is raised.
#[pyfunction]
fn vhost_frontend<'py>(
    py: Python<'py>,
    path: String,
    change: Py<PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let mut raised = None;
    let talk = py.detach(|| {
        vduse_load::vhost_frontend(&path, || {
            Python::attach(|py| change.call0(py))
                .map(drop)
                .map_err(|error| {
                    let text = error.to_string();
                    raised = Some(error);
                    EngineError::Driver("change", text)
                })
        })
    });
    let talk = talk.map_err(|error| raised.take().unwrap_or_else(|| engine_error(error)))?;
    let dict = PyDict::new(py);
    dict.set_item("features", talk.features)?;
    dict.set_item("protocol_features", talk.protocol_features)?;
    dict.set_item("queues", talk.queues)?;
    dict.set_item("memory_slots", talk.memory_slots)?;
    dict.set_item("config", PyBytes::new(py, &talk.config))?;
    dict.set_item("inflight", talk.inflight)?;
    dict.set_item("config_changes", talk.config_changes)?;
    let serials = talk.serials.iter().map(|serial| PyBytes::new(py, serial));
    dict.set_item("serials", PyList::new(py, serials)?)?;
    dict.set_item("bases", talk.bases)?;
    Ok(dict)
}

/// The domain of a vDPA device, and the line of its first virtqueue.
fn parts(
    device: &Bound<'_, PyAny>,
) -> PyResult<(Arc<vduse_framework::Domain>, Arc<vduse_framework::VqLine>)> {
    let domain = device.getattr("domain")?;
    let line = device.call_method1("vq_line", (0,))?;
    Ok((
        domain.cast::<Domain>()?.get().shared()?.clone(),
        line.cast::<VqLine>()?.get().shared()?.clone(),
    ))
}

/// Adds this half's functions to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(load_ours, m)?)?;
    m.add_function(wrap_pyfunction!(load_virtio_drivers, m)?)?;
    m.add_function(wrap_pyfunction!(vhost_frontend, m)?)?;
    m.add_function(wrap_pyfunction!(copy_baseline, m)?)?;
    m.add_function(wrap_pyfunction!(entropy_virtio_drivers, m)?)?;
    Ok(())
}
