//! Binding of the seccomp listener: other programs' calls on /dev/vduse.

use crate::fork::PerProcess;
use crate::framework::IrqGate;
use crate::{error, fd};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString, c_int};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use vduse_seccomp::{Launch, ReplyError};

/// A program under the filter; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct Supervised(PerProcess<Arc<vduse_seccomp::Supervised>>);

#[pymethods]
impl Supervised {
    #[staticmethod]
    #[pyo3(signature = (argv, env, cwd = None, stdio = (0, 1, 2)))]
    fn spawn(
        py: Python<'_>,
        argv: Vec<OsString>,
        env: HashMap<OsString, OsString>,
        cwd: Option<PathBuf>,
        stdio: (c_int, c_int, c_int),
    ) -> PyResult<Supervised> {
        if argv.is_empty() {
            return Err(PyValueError::new_err("no program is named"));
        }
        let launch = Launch {
            argv,
            env: env.into_iter().collect(),
            folder: cwd,
            stdio: [fd::dup(stdio.0)?, fd::dup(stdio.1)?, fd::dup(stdio.2)?],
        };
        let supervised = py.detach(|| vduse_seccomp::Supervised::spawn(launch));
        let supervised = supervised.map_err(|error| error::os_error(error.errno(), error))?;
        Ok(Supervised(PerProcess::new(Arc::new(supervised))))
    }

    #[getter]
    fn pid(&self) -> PyResult<u32> {
        Ok(self.0.get()?.pid())
    }

    fn fileno(&self) -> PyResult<c_int> {
        Ok(self.0.get()?.as_fd().as_raw_fd())
    }

    fn take(&self) -> PyResult<Vec<NodeCall>> {
        let calls = self.0.get()?.take().into_iter();
        Ok(calls.map(|call| NodeCall(PerProcess::new(call))).collect())
    }

    fn notices(&self) -> PyResult<Vec<String>> {
        Ok(self.0.get()?.notices())
    }

    #[pyo3(signature = (inode, key, gate))]
    fn add_node(&self, inode: u64, key: u64, gate: Option<&IrqGate>) -> PyResult<()> {
        let gate = gate.map(|gate| gate.shared().cloned()).transpose()?;
        let added = self.0.get()?.add_node(inode, key, gate);
        added.map_err(error::errno)
    }

    fn remove_node(&self, inode: u64) -> PyResult<()> {
        self.0.get()?.remove_node(inode);
        Ok(())
    }

    fn stats(&self) -> PyResult<BTreeMap<&'static str, u64>> {
        let stats = self.0.get()?.stats();
        Ok(BTreeMap::from([
            ("opens", stats.opens),
            ("looks", stats.looks),
            ("ioctls", stats.ioctls),
            ("irqs", stats.irqs),
            ("passed", stats.passed),
            ("foreign", stats.foreign),
            ("io_uring", stats.io_uring),
        ]))
    }

    #[getter]
    fn ended(&self) -> PyResult<bool> {
        Ok(self.0.get()?.ended())
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let supervised = self.0.get()?;
        py.detach(|| supervised.close());
        Ok(())
    }
}

/// A call that waits; see `_native.pyi`.
#[pyclass(frozen, module = "vduse._native")]
pub struct NodeCall(PerProcess<vduse_seccomp::NodeCall>);

fn refused(error: ReplyError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[pymethods]
impl NodeCall {
    #[getter]
    fn kind(&self) -> PyResult<&'static str> {
        Ok(self.0.get()?.kind())
    }

    #[getter]
    fn tid(&self) -> PyResult<u32> {
        Ok(self.0.get()?.tid())
    }

    #[getter]
    fn pid(&self) -> PyResult<u32> {
        Ok(self.0.get()?.pid())
    }

    #[getter]
    fn path(&self) -> PyResult<OsString> {
        Ok(OsStr::from_bytes(self.0.get()?.path()).to_owned())
    }

    #[getter]
    fn flags(&self) -> PyResult<u64> {
        Ok(self.0.get()?.flags())
    }

    #[getter]
    fn key(&self) -> PyResult<u64> {
        Ok(self.0.get()?.ioctl().map_or(0, |(key, _, _)| key))
    }

    #[getter]
    fn nr(&self) -> PyResult<u32> {
        Ok(self.0.get()?.ioctl().map_or(0, |(_, nr, _)| nr))
    }

    #[getter]
    fn payload<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let payload = self
            .0
            .get()?
            .ioctl()
            .map_or(&[][..], |(_, _, payload)| payload);
        Ok(PyBytes::new(py, payload))
    }

    fn kick_fd(&self, py: Python<'_>) -> PyResult<c_int> {
        let call = self.0.get()?;
        let fd = py.detach(|| call.kick_fd()).map_err(error::errno)?;
        Ok(fd.into_raw_fd())
    }

    #[pyo3(signature = (result, payload = b"".as_slice()))]
    fn reply(&self, py: Python<'_>, result: i64, payload: &[u8]) -> PyResult<()> {
        let call = self.0.get()?;
        let result = outcome(result)?;
        py.detach(|| call.reply(result, payload)).map_err(refused)
    }

    #[pyo3(signature = (fd, *, payload = b"".as_slice(), cloexec))]
    fn reply_fd(&self, py: Python<'_>, fd: c_int, payload: &[u8], cloexec: bool) -> PyResult<bool> {
        let (call, fd) = (self.0.get()?, fd::dup(fd)?);
        let given = py.detach(|| call.reply_fd(fd.as_fd(), payload, cloexec));
        given.map_err(refused)
    }

    fn reply_stat(&self, py: Python<'_>, mode: u32, rdev: u64) -> PyResult<()> {
        let call = self.0.get()?;
        py.detach(|| call.reply_stat(mode, rdev)).map_err(refused)
    }
}

/// What a system call returns in its register.
fn outcome(result: i64) -> PyResult<Result<i64, Errno>> {
    match result {
        0.. => Ok(Ok(result)),
        -4095..0 => Ok(Err(Errno::from_raw_os_error(-result as i32))),
        _ => Err(PyValueError::new_err(format!(
            "{result} is neither a result nor an errno"
        ))),
    }
}

/// Adds the classes to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Supervised>()?;
    m.add_class::<NodeCall>()
}
