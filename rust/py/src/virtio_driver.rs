//! Binding of the load generator on crate `virtio-driver`: one connection, any number of loads.

use crate::error;
use crate::fork::PerProcess;
use crate::load::{SpecArgs, drive, to_dict};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vduse_load::{Disk, VirtioDriver as Driver, VirtioDriverSetup, run};

/// A device behind a vhost-user socket or a vhost-vdpa node, driven by crate `virtio-driver`.
#[pyclass(frozen, module = "vduse._native")]
pub struct VirtioDriver {
    /// `None`: closed, in use, or a load failed and may have left requests in flight.
    driver: PerProcess<Mutex<Option<Driver>>>,
    disk: Disk,
    setup: VirtioDriverSetup,
}

impl VirtioDriver {
    fn lock(&self) -> PyResult<MutexGuard<'_, Option<Driver>>> {
        let driver = self.driver.get()?;
        Ok(driver.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl VirtioDriver {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "each has its name in Python")]
    #[pyo3(signature = (path, *, depth, block_size, packed, queues, queue_size, event_idx))]
    fn new(
        py: Python<'_>,
        path: &str,
        depth: u32,
        block_size: u32,
        packed: bool,
        queues: u16,
        queue_size: u16,
        event_idx: bool,
    ) -> PyResult<VirtioDriver> {
        let setup = VirtioDriverSetup {
            packed,
            event_idx,
            queues,
            queue_size,
            depth,
            block_size,
        };
        let driver = drive(py, None, |_| Ok(Driver::new(path, setup)?))?;
        Ok(VirtioDriver {
            disk: driver.disk(),
            driver: PerProcess::new(Mutex::new(Some(driver))),
            setup,
        })
    }

    #[getter]
    fn capacity(&self) -> u64 {
        self.disk.capacity
    }

    #[getter]
    fn read_only(&self) -> bool {
        self.disk.read_only
    }

    #[getter]
    fn queues(&self) -> u16 {
        self.disk.queues
    }

    #[pyo3(signature = (spec, progress = None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        spec: SpecArgs,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let spec = spec.check()?;
        if (spec.depth, spec.block_size) != (self.setup.depth, self.setup.block_size) {
            return Err(PyValueError::new_err(
                "depth and block_size are those of the driver's buffers",
            ));
        }
        let mut driver = self
            .lock()?
            .take()
            .ok_or_else(|| error::closed("virtio-driver"))?;
        let (driver, report) = drive(py, progress.as_ref(), move |interrupted| {
            let report = run(&mut driver, &spec, interrupted)?;
            Ok((driver, report))
        })?;
        *self.lock()? = Some(driver);
        to_dict(py, &report)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let driver = self.lock()?.take();
        py.detach(|| drop(driver));
        Ok(())
    }
}

/// Adds the class to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<VirtioDriver>()
}
