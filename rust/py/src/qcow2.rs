//! Binding of the backend `qcow2`; see `_native.pyi`.

use crate::device::{Backend, Pool, backend_error, parse_engine};
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;
use vduse_device::backend::Locking;
use vduse_qcow2::{Beneath, Options, Qcow2};

#[pyfunction]
#[pyo3(signature = (
    path, pool, *, read_only = false, direct = false, engine = "auto", lock = true, backing = None,
    follow = true
))]
#[expect(clippy::too_many_arguments, reason = "Python gives them by name")]
fn qcow2_backend(
    py: Python<'_>,
    path: PathBuf,
    pool: &Pool,
    read_only: bool,
    direct: bool,
    engine: &str,
    lock: bool,
    backing: Option<&Backend>,
    follow: bool,
) -> PyResult<Backend> {
    let options = Options {
        read_only,
        direct,
        engine: parse_engine(engine)?,
        locking: match lock {
            false => Locking::Never,
            true => Locking::Open,
        },
    };
    let workers = pool.handle()?;
    let beneath = beneath(backing, follow)?;
    let opened = py.detach(|| Qcow2::open(&path, options, beneath, &workers));
    let backend = Backend::of(Arc::new(opened.map_err(backend_error)?));
    keep(&backend, pool, backing)?;
    Ok(backend)
}

#[pyfunction]
#[pyo3(signature = (below, pool, *, name, read_only = false, backing = None, follow = true))]
fn qcow2_layer(
    py: Python<'_>,
    below: &Bound<'_, Backend>,
    pool: &Pool,
    name: PathBuf,
    read_only: bool,
    backing: Option<&Backend>,
    follow: bool,
) -> PyResult<Backend> {
    let workers = pool.handle()?;
    let beneath = beneath(backing, follow)?;
    let layer = Backend::try_on(below, |file| {
        let opened = py.detach(|| Qcow2::on(file, &name, read_only, beneath, &workers));
        Ok(Arc::new(opened.map_err(backend_error)?))
    })?;
    keep(&layer, pool, backing)?;
    Ok(layer)
}

/// What an image is to have beneath it.
fn beneath(backing: Option<&Backend>, follow: bool) -> PyResult<Beneath> {
    match backing {
        Some(backing) => Ok(Beneath::Disk(backing.shared()?.0)),
        None if follow => Ok(Beneath::AsNamed),
        None => Ok(Beneath::Nothing),
    }
}

/// What an image cannot be without stays open.
fn keep(image: &Backend, pool: &Pool, backing: Option<&Backend>) -> PyResult<()> {
    image.keep(pool.lease.clone());
    if let Some(backing) = backing {
        image.keep(backing.shared()?.1);
    }
    Ok(())
}

/// Adds them to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(qcow2_backend, m)?)?;
    m.add_function(wrap_pyfunction!(qcow2_layer, m)?)
}
