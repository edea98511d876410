//! Fds as Python has them: numbers. The one place that turns a number into an fd.

use crate::error;
use pyo3::PyResult;
use rustix::io::{Errno, fcntl_dupfd_cloexec, fcntl_getfd};
use std::ffi::c_int;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// A dup (close-on-exec) of an fd that stays the caller's. OSError EBADF.
pub fn dup(fd: c_int) -> PyResult<OwnedFd> {
    fcntl_dupfd_cloexec(borrow(fd)?, 0).map_err(error::errno)
}

/// An fd that the caller gives away. OSError EBADF.
pub fn take(fd: c_int) -> PyResult<OwnedFd> {
    fcntl_getfd(borrow(fd)?).map_err(error::errno)?;
    // SAFETY: the fd is open, and the caller says that it is now ours to close.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Only for the one system call that finds out whether the fd is open.
fn borrow<'a>(fd: c_int) -> PyResult<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(error::errno(Errno::BADF));
    }
    // SAFETY: not negative. The system call that follows at once gives EBADF if it is not
    // open; that nobody closes it meanwhile is the Python program's to see to, as for os.dup.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
