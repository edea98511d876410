//! Binding of the backend `rbd`; see `_native.pyi`.

use crate::device::{Backend, backend_error};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use vduse_rbd::{Key, Library, Lock, Options, Rbd};

#[pyfunction]
#[pyo3(signature = (
    pool, image, *, namespace = None, snapshot = None, conf = None, mon_host = None, auth = None,
    id = None, keyring = None, key = None, read_only = false, direct = false, lock = "refuse", open_timeout = 30.0,
    reconnect_delay = None
))]
#[expect(clippy::too_many_arguments, reason = "Python gives them by name")]
fn rbd_backend(
    py: Python<'_>,
    pool: String,
    image: String,
    namespace: Option<String>,
    snapshot: Option<String>,
    conf: Option<String>,
    mon_host: Option<String>,
    auth: Option<String>,
    id: Option<String>,
    keyring: Option<String>,
    key: Option<String>,
    read_only: bool,
    direct: bool,
    lock: &str,
    open_timeout: f64,
    reconnect_delay: Option<f64>,
) -> PyResult<Backend> {
    let lock = match lock {
        "refuse" => Lock::Refuse,
        "break" => Lock::Break,
        "share" => Lock::Share,
        other => {
            return Err(PyValueError::new_err(format!(
                "lock {other:?} is none of refuse, break, share"
            )));
        }
    };
    let options = Options {
        pool,
        namespace,
        image,
        snapshot,
        conf,
        mon_host,
        auth,
        id,
        keyring,
        key: key.map(Key),
        read_only,
        direct,
        lock,
        open_timeout: seconds(open_timeout)?,
        reconnect_delay: reconnect_delay.map(seconds).transpose()?,
    };
    let opened = py.detach(|| Rbd::open(Library::system()?, options));
    Ok(Backend::of(Arc::new(opened.map_err(backend_error)?)))
}

fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|_| PyValueError::new_err(format!("{value} seconds: not a time to wait")))
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(rbd_backend, m)?)
}
