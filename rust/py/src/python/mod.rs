//! Disks written in Python: a backend whose engine hands Python a whole batch, on the worker's
//! thread, with one acquisition of the GIL.

mod backend;
mod batch;
mod engine;
mod exporter;
mod handler;
mod lender;
mod registry;

pub use batch::Lease;

use pyo3::prelude::*;

/// Adds the classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<backend::PythonBackend>()?;
    m.add_class::<exporter::IoBatch>()?;
    m.add_class::<exporter::IoRequest>()?;
    Ok(())
}
