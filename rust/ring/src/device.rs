//! The device's side of a virtqueue.
//!
//! The driver may change any shared byte at any time: every field is read once, into a
//! private copy, and checked there; the device's own positions are never read back.

use crate::{Areas, Layout, LayoutError, QueueState, Segment};
use smallvec::SmallVec;
use vduse_mem::{Fault, Pinned, View};

/// One request as the driver chained it. Reused from pop to pop: no allocation in the usual
/// case.
#[derive(Debug, Default)]
pub struct Chain {
    /// Buffer id, for [`DeviceQueue::complete`] (split: head index; packed: buffer id).
    pub id: u16,
    /// Ring descriptors the chain takes (packed: how far the ring moves on).
    pub slots: u16,
    /// Device-readable segments, in order.
    pub readable: SmallVec<[Segment; 4]>,
    /// Device-writable segments, in order.
    pub writable: SmallVec<[Segment; 4]>,
}

/// What the driver got wrong; each ends the device, none ends the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// avail.idx is more than the queue's size ahead of what was taken.
    #[error("avail index {avail} is more than {size} ahead of {taken}")]
    AvailIndex {
        /// As read from the ring.
        avail: u16,
        /// Taken so far.
        taken: u16,
        /// Queue size.
        size: u16,
    },
    /// A head or next index outside the table.
    #[error("descriptor index {0} is out of range")]
    Index(u16),
    /// A chain that does not end (longer than the table).
    #[error("descriptor chain loops or is longer than the queue")]
    TooLong,
    /// A descriptor of no bytes.
    #[error("descriptor {0} has no bytes")]
    ZeroLength(u16),
    /// The bytes of one chain exceed 2^32.
    #[error("chain holds more than 2^32 bytes")]
    TooManyBytes,
    /// A device-readable descriptor after a device-writable one (section 2.7.4.2, 2.8.6).
    #[error("device-readable descriptor after a device-writable one")]
    Order,
    /// An indirect table inside an indirect table, or with NEXT, or not negotiated.
    #[error("indirect descriptor where none is allowed")]
    Indirect,
    /// An indirect table of no descriptors, a length that is no multiple of 16, or longer
    /// than the queue (virtio 1.3, section 2.7.5.3.1).
    #[error("indirect table of {0} bytes")]
    IndirectSize(u32),
    /// The same buffer id is in flight twice.
    #[error("buffer id {0} is already in flight")]
    Busy(u16),
}

/// Why a queue cannot go on. The queue takes nothing more after any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The driver broke the ring's rules.
    #[error("malformed virtqueue: {0}")]
    Malformed(#[from] Malformed),
    /// An indirect table or ring lies where nothing is mapped.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Set-up with a layout that is not allowed.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// An in-flight record that does not belong to this queue.
    #[error("in-flight record: {0}")]
    Inflight(&'static str),
}

/// The device's side of one virtqueue, split or packed.
#[derive(Debug)]
pub struct DeviceQueue {}

impl DeviceQueue {
    /// A queue that goes on from `state`.
    pub fn new(
        _layout: Layout,
        _areas: Areas,
        _state: QueueState,
    ) -> Result<DeviceQueue, RingError> {
        todo!()
    }

    /// A queue with an in-flight record in `record` (the vhost-user specification's
    /// queue region, split or packed). An all-zero record starts afresh from `state`; otherwise
    /// positions are recovered from record and ring, and [`DeviceQueue::pop`] first yields the
    /// requests that were in flight, in their order.
    pub fn with_inflight(
        _layout: Layout,
        _areas: Areas,
        _state: QueueState,
        _record: Pinned,
    ) -> Result<DeviceQueue, RingError> {
        todo!()
    }

    /// Bytes of the in-flight record one queue of this layout needs, 64-byte aligned.
    pub fn inflight_size(_layout: &Layout) -> u64 {
        todo!()
    }

    /// Takes the next request into `chain`; false if there is none.
    pub fn pop(&mut self, _view: &mut View, _chain: &mut Chain) -> Result<bool, RingError> {
        todo!()
    }

    /// Stages a completion: `written` bytes were written to the writable segments. Any order.
    /// The driver sees it at [`DeviceQueue::publish`].
    pub fn complete(&mut self, _id: u16, _slots: u16, _written: u32) {
        todo!()
    }

    /// Publishes all staged completions at once; whether the driver wants an irq for them.
    pub fn publish(&mut self) -> bool {
        todo!()
    }

    /// Asks the driver not to kick.
    pub fn suppress_kicks(&mut self) {
        todo!()
    }

    /// Asks the driver to kick for the next request; true if one is there already, so that
    /// the caller must look again instead of sleeping.
    pub fn enable_kicks(&mut self) -> bool {
        todo!()
    }

    /// Requests taken and not yet published.
    pub fn in_flight(&self) -> u16 {
        todo!()
    }

    /// Where the queue stands (for VDUSE_GET_VQ_STATE, after a drain).
    pub fn state(&self) -> QueueState {
        todo!()
    }

    /// Whether the memory of this ring was taken away (SIGBUS).
    pub fn is_poisoned(&self) -> bool {
        todo!()
    }
}
