//! Binding of the NBD export; see `_native.pyi` for what each method promises.

use crate::datapath::{Lease, seconds};
use crate::device::{BlkDataPath, Pool};
use crate::fork::PerProcess;
use crate::framework::BlkDriver;
use crate::nbd_tls::NbdTls;
use crate::{error, fd};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use vduse_device::backend::{Piece, StatusRequest};
use vduse_device::{Disk, Extent, Length, Offset};
use vduse_nbd::{Allocation, AttachError, Export, Options, Part, Question};

/// Connections in the transmission phase; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct NbdExport {
    export: PerProcess<Export>,
    /// The pool's, until the export is closed.
    lease: Mutex<Option<Lease>>,
}

/// What lies where, as the device knows it whose disk is exported, while that is there.
struct Contents(Weak<Disk>);

impl Allocation for Contents {
    fn ask(&self, question: Question) {
        let extent = Extent::new(Offset(question.offset()), Length(question.length()));
        let (Some(extent), Some(disk)) = (extent, self.0.upgrade()) else {
            // Dropped, the question is answered: EIO, as all requests then.
            return;
        };
        let most = question.most();
        let request = StatusRequest::new(extent, most, move |answer| {
            question.answer(answer.map(|pieces| pieces.into_iter().map(part).collect()));
        });
        disk.block_status(request);
    }
}

fn part(piece: Piece) -> Part {
    Part {
        len: piece.len.0,
        is_hole: piece.is_hole,
        is_zero: piece.is_zero,
    }
}

#[pymethods]
impl NbdExport {
    #[new]
    #[pyo3(signature = (driver, pool, *, first_worker = 0, data_path = None))]
    fn new(
        driver: &BlkDriver,
        pool: &Pool,
        first_worker: usize,
        data_path: Option<&BlkDataPath>,
    ) -> PyResult<NbdExport> {
        let driver = driver.shared()?.clone();
        let disk = data_path.map(BlkDataPath::disk).transpose()?;
        let contents =
            disk.map(|disk| Arc::new(Contents(Arc::downgrade(disk))) as Arc<dyn Allocation>);
        let export =
            Export::new(driver, pool.handle()?, first_worker, contents).map_err(error::errno)?;
        Ok(NbdExport {
            export: PerProcess::new(export),
            lease: Mutex::new(Some(pool.lease.clone())),
        })
    }

    #[pyo3(signature = (fd, *, structured, base_allocation, tls = None))]
    fn attach(
        &self,
        fd: c_int,
        structured: bool,
        base_allocation: bool,
        tls: Option<&NbdTls>,
    ) -> PyResult<()> {
        let socket = fd::take(fd)?;
        let export = self.export.get()?;
        let tls = tls.map(NbdTls::take).transpose()?;
        if base_allocation && !structured {
            return Err(PyValueError::new_err(
                "base:allocation needs structured replies",
            ));
        }
        let options = Options {
            structured,
            base_allocation,
        };
        export
            .attach(socket, tls, options)
            .map_err(|refused| match refused {
                AttachError::Closed => error::closed("export"),
                AttachError::Socket(errno) => error::os_error(errno, refused),
            })
    }

    #[getter]
    fn connections(&self) -> PyResult<usize> {
        Ok(self.export.get()?.connections())
    }

    #[getter]
    fn event_fd(&self) -> PyResult<c_int> {
        Ok(self.export.get()?.event_fd().as_raw_fd())
    }

    fn events(&self) -> PyResult<Vec<String>> {
        Ok(self.export.get()?.events())
    }

    fn stats(&self) -> PyResult<BTreeMap<&'static str, u64>> {
        let stats = self.export.get()?.stats();
        Ok(BTreeMap::from([
            ("connections", stats.connections),
            ("requests", stats.requests),
            ("bytes_read", stats.bytes_read),
            ("bytes_written", stats.bytes_written),
            ("errors", stats.errors),
        ]))
    }

    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let export = self.export.get()?;
        let timeout = seconds(timeout)?;
        let answered = py.detach(|| export.close(timeout));
        let lease = self
            .lease
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(lease);
        Ok(answered)
    }
}

/// Adds the class to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<NbdExport>()
}
