//! Binding of TLS sessions of NBD connections; see `_native.pyi` for what each method promises.

use crate::error;
use crate::fork::PerProcess;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::io::Errno;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vduse_nbdsocket::{Client, Failure, Server, Tls};

/// A TLS session, of either side; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct NbdTls(PerProcess<Mutex<Option<Tls>>>);

impl NbdTls {
    fn of(session: Result<Tls, Failure>) -> PyResult<NbdTls> {
        let session = session.map_err(|failure| error::os_error(Errno::INVAL, failure.0))?;
        Ok(NbdTls(PerProcess::new(Mutex::new(Some(session)))))
    }

    /// The session goes on elsewhere.
    pub fn take(&self) -> PyResult<Tls> {
        self.lock()?.take().ok_or_else(|| error::closed("session"))
    }

    fn lock(&self) -> PyResult<MutexGuard<'_, Option<Tls>>> {
        let session = self.0.get()?.lock();
        Ok(session.unwrap_or_else(PoisonError::into_inner))
    }

    fn with<T>(&self, what: impl FnOnce(&mut Tls) -> PyResult<T>) -> PyResult<T> {
        let mut session = self.lock()?;
        what(session.as_mut().ok_or_else(|| error::closed("session"))?)
    }
}

#[pymethods]
impl NbdTls {
    #[new]
    #[pyo3(signature = (host, authorities, client = None))]
    fn new(host: &str, authorities: &[u8], client: Option<(Vec<u8>, Vec<u8>)>) -> PyResult<NbdTls> {
        let own = client.as_ref().map(|(chain, key)| (&chain[..], &key[..]));
        NbdTls::of(Tls::client(&Client {
            authorities,
            own,
            host,
        }))
    }

    #[staticmethod]
    #[pyo3(signature = (chain, key, authorities = None))]
    fn server(chain: &[u8], key: &[u8], authorities: Option<&[u8]>) -> PyResult<NbdTls> {
        NbdTls::of(Tls::server(&Server {
            chain,
            key,
            authorities,
        }))
    }

    #[getter]
    fn handshaking(&self) -> PyResult<bool> {
        self.with(|session| Ok(session.is_handshaking()))
    }

    fn receive<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let plain = self.with(|session| session.receive(data).map_err(broken))?;
        Ok(PyBytes::new(py, &plain))
    }

    fn send(&self, data: &[u8]) -> PyResult<()> {
        self.with(|session| session.send(data).map_err(broken))
    }

    fn take_output<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let output = self.with(|session| Ok(session.take_output()))?;
        Ok(PyBytes::new(py, &output))
    }
}

fn broken(failure: Failure) -> PyErr {
    error::os_error(Errno::PROTO, failure.0)
}

/// Adds the class to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<NbdTls>()
}
