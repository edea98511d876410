//! The driver.

use super::{Request, Sectors, SetupError};
use crate::{Dma, VqLine};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;
use vduse_mem::Iova;

/// What a driver has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkStats {
    /// Virtio-blk requests made available.
    pub requests: u64,
    /// Bytes read by ended requests.
    pub bytes_read: u64,
    /// Bytes written by ended requests.
    pub bytes_written: u64,
    /// Virtio-blk requests that failed.
    pub errors: u64,
    /// Kicks sent.
    pub kicks: u64,
    /// Batches published without a kick, because the device had asked for none.
    pub kicks_suppressed: u64,
    /// Irqs received.
    pub irqs: u64,
}

/// The driver's side of one virtio-blk device, shared by threads.
pub struct BlkDriver {}

impl BlkDriver {
    /// A driver for the negotiated `features` and the device's config space, its rings and
    /// headers allocated in `dma`; `lines` and `queue_sizes` (descriptors) one a queue.
    pub fn new(
        _dma: Arc<dyn Dma>,
        _features: u64,
        _config: &[u8],
        _queue_sizes: &[u16],
        _lines: &[Arc<VqLine>],
    ) -> Result<Arc<BlkDriver>, SetupError> {
        todo!()
    }

    /// Number of queues.
    pub fn queues(&self) -> usize {
        todo!()
    }

    /// IOVAs of a queue's descriptor, driver and device areas.
    pub fn areas(&self, _queue: usize) -> Option<[Iova; 3]> {
        todo!()
    }

    /// After DRIVER_OK: requests are taken from now on (`ENODEV` before).
    pub fn start(&self) {
        todo!()
    }

    /// After the device has answered a reset: every outstanding and later request ends with
    /// `errno`, and what the device could reach goes back.
    pub fn stop(&self, _errno: Errno) {
        todo!()
    }

    /// After a config interrupt: the capacity may have changed.
    pub fn set_config(&self, _config: &[u8]) -> Result<(), SetupError> {
        todo!()
    }

    /// The disk's size.
    pub fn capacity(&self) -> Sectors {
        todo!()
    }

    /// VIRTIO_BLK_F_RO.
    pub fn read_only(&self) -> bool {
        todo!()
    }

    /// Why the device was given up, if it was.
    pub fn failure(&self) -> Option<String> {
        todo!()
    }

    /// What was done so far.
    pub fn stats(&self) -> BlkStats {
        todo!()
    }

    /// A handle on queue `index`: its requests and their results are its own, whoever else uses
    /// the queue. `None` if there is no such queue.
    pub fn queue(self: &Arc<Self>, _index: usize) -> Option<BlkQueue> {
        todo!()
    }

    /// One request, on this thread's queue; waits for its end and returns the bytes moved.
    /// While it waits, `go_on` is asked about every 50 ms and after every signal; false ends
    /// the wait with `EINTR` (the request may still be carried out, its buffer is free).
    pub fn run(
        self: &Arc<Self>,
        _request: Request,
        _go_on: &mut dyn FnMut() -> bool,
    ) -> Result<u64, Errno> {
        todo!()
    }
}

/// A handle on one queue, for one thread at a time. Dropped, it lets go of all buffers; requests
/// still outstanding may be carried out, their results are lost.
pub struct BlkQueue {}

impl BlkQueue {
    /// Hands a request to the queue; `token` comes back from [`BlkQueue::reap`]. Never waits:
    /// what the ring cannot take yet follows as others end. The device learns of it at
    /// [`BlkQueue::kick`]. The buffer must stay valid until reaped.
    ///
    /// Errors: `EINVAL` (not whole sectors, beyond the end), `EROFS`, `EOPNOTSUPP`, `ENODEV`
    /// (not started), `EIO` (device given up), or what [`BlkDriver::stop`] was called with.
    pub fn submit(&mut self, _request: Request, _token: u64) -> Result<(), Errno> {
        todo!()
    }

    /// Makes what was submitted available to the device, kicking it if it asks for that.
    pub fn kick(&mut self) {
        todo!()
    }

    /// Appends the requests that have ended, `(token, bytes or errno)`; never waits, and kicks
    /// for whatever could follow on. Returns how many.
    pub fn reap(&mut self, _out: &mut Vec<(u64, Result<u64, Errno>)>) -> usize {
        todo!()
    }

    /// Waits until [`BlkQueue::reap`] has something, nothing is outstanding, the driver was
    /// stopped, or `timeout` passed (`None`: for ever). False if it passed, or if a signal
    /// arrived.
    pub fn wait(&mut self, _timeout: Option<Duration>) -> bool {
        todo!()
    }

    /// Requests submitted and not reaped.
    pub fn outstanding(&self) -> usize {
        todo!()
    }
}
