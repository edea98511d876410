//! Requests that the backend has failed, as the device's owner is told of them: a driver may
//! repeat a failing request as fast as it can, and the log is not the place for all of those.

use crate::Extent;
use rustix::io::Errno;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For so long an errno is not told again.
const PAUSE: Duration = Duration::from_secs(60);

/// A request that the backend has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) errno: Errno,
    /// The field's name of what was to be done.
    pub(crate) operation: &'static str,
    /// Where; `None` of a flush.
    pub(crate) extent: Option<Extent>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if let Some(extent) = self.extent {
            let (offset, len) = (extent.offset().0, extent.len().0);
            write!(f, " of {len} bytes at {offset}")?;
        }
        write!(f, ": {}", std::io::Error::from(self.errno))
    }
}

/// Keeps quiet about an errno that was told lately. A system has some hundred of them.
#[derive(Default)]
pub(crate) struct Quiet(Mutex<Vec<(Errno, Instant)>>);

impl Quiet {
    /// Whether a failure with `errno` is to be told at `now`.
    pub(crate) fn lets_through(&self, errno: Errno, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(_, at)| now.saturating_duration_since(*at) < PAUSE);
        let is_new = told.iter().all(|(known, _)| *known != errno);
        if is_new {
            told.push((errno, now));
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Length, Offset};

    #[test]
    fn each_errno_is_told_once_a_minute() {
        let (quiet, begin) = (Quiet::default(), Instant::now());
        let tell = |errno, seconds| quiet.lets_through(errno, begin + Duration::from_secs(seconds));
        assert!(tell(Errno::IO, 0));
        assert!(tell(Errno::NOSPC, 1));
        assert!(!tell(Errno::IO, 59));
        assert!(tell(Errno::IO, 60));
        assert!(!tell(Errno::NOSPC, 60));
    }

    #[test]
    fn a_failure_says_what_where_and_why() {
        let mut failure = Failure {
            errno: Errno::IO,
            operation: "read",
            extent: Extent::new(Offset(4096), Length(512)),
        };
        let words = "read of 512 bytes at 4096: Input/output error (os error 5)";
        assert_eq!(failure.to_string(), words);
        failure = Failure {
            operation: "flush",
            extent: None,
            ..failure
        };
        assert_eq!(
            failure.to_string(),
            "flush: Input/output error (os error 5)"
        );
    }
}
