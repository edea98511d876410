//! Calls that a stalled cluster would hold: each on a thread of its own, awaited for so long.

use rustix::io::Errno;
use std::sync::mpsc;
use std::thread::Builder;
use std::time::Duration;
use vduse_device::backend::Error;

/// What `call` returns, unless it takes longer than `limit`: ETIMEDOUT, with `what` in the
/// message. What comes after that is dropped, on the call's thread.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let (answer, answered) = mpsc::sync_channel(0);
    apart(move || {
        // Gives it back where nobody waits any more.
        let _ = answer.send(call());
    })?;
    answered.recv_timeout(limit).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => late(what, limit),
        mpsc::RecvTimeoutError::Disconnected => Error::failed(what, Errno::IO),
    })
}

/// The cluster has not answered in time.
pub(crate) fn late(what: &str, limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    Error::new(
        Errno::TIMEDOUT,
        format!("{what}: no answer from the cluster in {seconds} s; see ceph status"),
    )
}

/// Makes `call` on a thread of its own.
pub(crate) fn apart(call: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    match Builder::new().name("rbd-control".into()).spawn(call) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::failed(
            "a thread",
            Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
        )),
    }
}
