//! Errors of opening and keeping a backend: an errno and a sentence for whoever asked.

use rustix::io::Errno;

/// What went wrong, in the user's terms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The errno to report.
    pub errno: Errno,
    /// What happened and what can be done.
    pub message: String,
}

impl Error {
    /// With a sentence of its own.
    pub fn new(errno: Errno, message: impl Into<String>) -> Error {
        Error {
            errno,
            message: message.into(),
        }
    }

    /// `what` failed as the system says in `errno`.
    pub fn failed(what: impl std::fmt::Display, errno: Errno) -> Error {
        Error::new(errno, format!("{what}: {errno}"))
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error::new(errno, errno.to_string())
    }
}
