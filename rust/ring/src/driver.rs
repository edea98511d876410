//! The driver's side of a virtqueue. The device is not trusted either: used ids and lengths
//! are checked against what was handed out.

use crate::{Areas, Layout, RingError, Segment};

/// Why a request was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// No descriptors left: try again after the device has used some.
    #[error("the virtqueue is full")]
    Full,
    /// The request can never fit.
    #[error("a request of {0} segments never fits the virtqueue")]
    TooLarge(usize),
}

/// The device broke the ring's rules; the queue is not to be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// A used id that was never handed out.
    #[error("the device used buffer {0}, which it was never given")]
    UnknownId(u32),
    /// More bytes written than the request's writable segments hold.
    #[error("the device claims {written} bytes written into {room}")]
    Length {
        /// Claimed.
        written: u32,
        /// What was there.
        room: u32,
    },
    /// used.idx ran ahead of what was handed out.
    #[error("used index {0} runs ahead of what was handed out")]
    UsedIndex(u16),
}

/// The driver's side of one virtqueue, split or packed.
#[derive(Debug)]
pub struct DriverQueue {}

impl DriverQueue {
    /// A fresh queue in zeroed areas. With `layout.indirect`, `indirect` is memory for one
    /// table per ring slot, `(host memory, IOVA of its first byte)`, each
    /// [`DriverQueue::INDIRECT_SEGMENTS`] descriptors long.
    pub fn new(
        _layout: Layout,
        _areas: Areas,
        _indirect: Option<(vduse_mem::Pinned, vduse_mem::Iova)>,
    ) -> Result<DriverQueue, RingError> {
        todo!()
    }

    /// Most segments of a request that goes through an indirect table.
    pub const INDIRECT_SEGMENTS: usize = 16;

    /// Stages a request; `token` comes back from [`DriverQueue::pop_used`]. Requests of more
    /// than one segment use an indirect table where that was negotiated.
    pub fn add(
        &mut self,
        _readable: &[Segment],
        _writable: &[Segment],
        _token: u32,
    ) -> Result<(), AddError> {
        todo!()
    }

    /// Makes all staged requests available at once; whether the device wants a kick.
    pub fn publish(&mut self) -> bool {
        todo!()
    }

    /// The next completed request: its token and the bytes the device says it wrote.
    pub fn pop_used(&mut self) -> Result<Option<(u32, u32)>, DriverError> {
        todo!()
    }

    /// Asks the device not to send irqs.
    pub fn suppress_irqs(&mut self) {
        todo!()
    }

    /// Asks the device for an irq; true if a completion is there already.
    pub fn enable_irqs(&mut self) -> bool {
        todo!()
    }

    /// Requests handed out and not yet back.
    pub fn in_flight(&self) -> u16 {
        todo!()
    }

    /// Tokens of all requests handed out and not yet back (for failing them).
    pub fn outstanding(&self) -> Vec<u32> {
        todo!()
    }

    /// Whether a request of `segments` segments can be added now.
    pub fn has_room(&self, _segments: usize) -> bool {
        todo!()
    }
}
