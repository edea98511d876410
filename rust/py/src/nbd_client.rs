//! Binding of the backend `nbd`; see `_native.pyi` for what each method promises.

use crate::device::{Backend, backend_error};
use crate::fork::PerProcess;
use crate::nbd_tls::NbdTls;
use crate::{datapath, error, fd};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::ffi::c_int;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vduse_nbdclient::{Control, Facts, Nbd, OnError, Options};
use vduse_nbdsocket::Socket;

/// Where an NBD backend asks for connections; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct NbdControl(PerProcess<Control>);

/// An export as the handshake has found it; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
struct NbdFacts(Facts);

#[pymethods]
impl NbdFacts {
    #[new]
    #[pyo3(signature = (size, flags, *, structured, base_allocation, minimum_block, maximum_payload))]
    fn new(
        size: u64,
        flags: u16,
        structured: bool,
        base_allocation: Option<u32>,
        minimum_block: u32,
        maximum_payload: u32,
    ) -> NbdFacts {
        NbdFacts(Facts {
            size,
            flags,
            is_structured: structured,
            allocation: base_allocation,
            minimum_block,
            maximum_payload,
        })
    }
}

#[pymethods]
impl NbdControl {
    #[getter]
    fn event_fd(&self) -> PyResult<c_int> {
        Ok(self.0.get()?.event_fd().as_raw_fd())
    }

    fn wants(&self) -> PyResult<Vec<u32>> {
        Ok(self.0.get()?.wants())
    }

    fn wanted(&self, number: u32) -> PyResult<bool> {
        Ok(self.0.get()?.wanted(number))
    }

    #[pyo3(signature = (number, fd, facts, tls = None))]
    fn connected(
        &self,
        number: u32,
        fd: c_int,
        facts: &NbdFacts,
        tls: Option<&NbdTls>,
    ) -> PyResult<bool> {
        let control = self.0.get()?;
        let socket = socket(fd, tls)?;
        control
            .connected(number, socket, facts.0)
            .map_err(backend_error)
    }

    fn refused(&self, number: u32, why: &str) -> PyResult<()> {
        self.0.get()?.refused(number, why);
        Ok(())
    }

    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.0.get()?.is_closed())
    }
}

#[pyfunction]
#[pyo3(signature = (fd, facts, tls = None, *, reconnect_delay, on_error))]
fn nbd_backend(
    fd: c_int,
    facts: &NbdFacts,
    tls: Option<&NbdTls>,
    reconnect_delay: f64,
    on_error: &str,
) -> PyResult<(Backend, NbdControl)> {
    let options = Options {
        reconnect_delay: datapath::seconds(reconnect_delay)?,
        on_error: match on_error {
            "report" => OnError::Report,
            "wait" => OnError::Wait,
            other => {
                let message = format!("on_error {other:?} is none of report, wait");
                return Err(PyValueError::new_err(message));
            }
        },
    };
    let made = Nbd::new(socket(fd, tls)?, facts.0, options).map_err(backend_error)?;
    let (backend, control) = made;
    let control = NbdControl(PerProcess::new(control));
    Ok((Backend::of(Arc::new(backend)), control))
}

/// A connected stream socket that the caller gives away, and its session.
fn socket(number: c_int, tls: Option<&NbdTls>) -> PyResult<Socket> {
    let fd = fd::take(number)?;
    let session = match tls {
        None => None,
        Some(tls) => Some(tls.take()?),
    };
    Socket::new(fd, session).map_err(error::errno)
}

/// Adds the classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<NbdFacts>()?;
    m.add_class::<NbdControl>()?;
    m.add_function(wrap_pyfunction!(nbd_backend, m)?)
}
