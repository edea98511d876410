//! The one place where errors of the Rust half become Python exceptions.
//!
//! Every system error is an OSError with its errno, so Python picks the subclass:
//! ECONNRESET ConnectionResetError, ETIMEDOUT TimeoutError, EAGAIN BlockingIOError, EPERM and
//! EACCES PermissionError, ENOENT FileNotFoundError, EEXIST FileExistsError, and OSError
//! itself for the rest. Use of a closed object is a ValueError, as with Python's own files.

use pyo3::PyErr;
use pyo3::exceptions::{PyOSError, PyValueError};
use rustix::io::Errno;
use std::fmt::Display;
use std::io;

/// An errno with the system's own words.
pub fn errno(errno: Errno) -> PyErr {
    os_error(errno, errno)
}

/// An errno with our own words, where they say more. Python shows the number: what Rust's errors
/// say of it is left out.
pub fn os_error(errno: Errno, words: impl Display) -> PyErr {
    let number = format!(" (os error {})", errno.raw_os_error());
    let words = words.to_string().replace(&number, "");
    PyOSError::new_err((errno.raw_os_error(), words))
}

/// Something cannot be closed: a data path that is not closed yet uses it.
pub fn in_use(what: &str) -> PyErr {
    os_error(
        Errno::BUSY,
        format!("{what} is in use: close the devices on it first"),
    )
}

/// An I/O error; one that the system did not make is EIO.
pub fn io_error(error: &io::Error) -> PyErr {
    match Errno::from_io_error(error) {
        Some(number) => errno(number),
        None => os_error(Errno::IO, error),
    }
}

/// Something was used after its `close()`.
pub fn closed(what: &str) -> PyErr {
    PyValueError::new_err(format!("{what} is closed"))
}
