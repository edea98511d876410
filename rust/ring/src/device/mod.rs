//! The device's side of a virtqueue.
//!
//! The driver may change any shared byte at any time: every field is read once, into a
//! private copy, and checked there; the device's own positions are never read back.

pub(crate) mod chain;
mod marks;
mod packed;
mod split;

pub use marks::RingLog;

use crate::inflight::{PackedRecord, SplitRecord};
use crate::{Areas, Layout, LayoutError, QueueState, Segment};
use smallvec::SmallVec;
use std::fmt;
use vduse_mem::{Fault, Pinned, View};

/// The segments of one direction, in order.
pub type Segments = SmallVec<[Segment; 4]>;

/// One request as the driver chained it. Reused from pop to pop: no allocation in the usual
/// case.
#[derive(Debug, Default)]
pub struct Chain {
    /// Buffer id, for [`DeviceQueue::complete`] (split: head index; packed: buffer id).
    pub id: u16,
    /// Ring descriptors the chain takes (packed: how far the ring moves on).
    pub slots: u16,
    /// Device-readable segments, in order.
    pub readable: Segments,
    /// Device-writable segments, in order.
    pub writable: Segments,
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
    /// A device-readable descriptor after a device-writable one (sections 2.7.4.2, 2.8.17).
    #[error("device-readable descriptor after a device-writable one")]
    Order,
    /// An indirect table inside an indirect table, or with NEXT, or not negotiated.
    #[error("indirect descriptor where none is allowed")]
    Indirect,
    /// An indirect table of no descriptors, a length that is no multiple of 16, or longer
    /// than the queue and than 1024 descriptors (virtio 1.3, section 2.7.5.3.1; see chain.rs).
    #[error("indirect table of {0} bytes")]
    IndirectSize(u32),
    /// The same buffer id is in flight twice.
    #[error("buffer id {0} is already in flight")]
    Busy(u16),
    /// A packed chain goes on in a slot that was not made available (section 2.8.6: the flags
    /// of every descriptor of a list are to be set).
    #[error("descriptor {0} continues a chain but is not available")]
    NotAvailable(u16),
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
pub struct DeviceQueue {
    ring: Ring,
    failed: Option<RingError>,
}

enum Ring {
    Split(split::Split),
    Packed(packed::Packed),
}

impl DeviceQueue {
    /// A queue that goes on from `state`.
    pub fn new(layout: Layout, areas: Areas, state: QueueState) -> Result<DeviceQueue, RingError> {
        DeviceQueue::start(layout, areas, state, None)
    }

    /// A queue with an in-flight record in `record` (the vhost-user specification's
    /// queue region, split or packed). An all-zero record starts afresh from `state`; otherwise
    /// positions are recovered from record and ring, and [`DeviceQueue::pop`] first yields the
    /// requests that were in flight, in their order. After a recovery the first
    /// [`DeviceQueue::publish`] asks for an irq even with nothing staged: the one for the last
    /// batch may have died with the device.
    pub fn with_inflight(
        layout: Layout,
        areas: Areas,
        state: QueueState,
        record: Pinned,
    ) -> Result<DeviceQueue, RingError> {
        DeviceQueue::start(layout, areas, state, Some(record))
    }

    fn start(
        layout: Layout,
        areas: Areas,
        state: QueueState,
        record: Option<Pinned>,
    ) -> Result<DeviceQueue, RingError> {
        let areas = layout.areas(areas)?;
        let ring = if layout.packed {
            Ring::Packed(packed::Packed::new(layout, areas, state, record)?)
        } else {
            Ring::Split(split::Split::new(layout, areas, state, record)?)
        };
        Ok(DeviceQueue { ring, failed: None })
    }

    /// Bytes of the in-flight record one queue of this layout needs, 64-byte aligned.
    pub fn inflight_size(layout: &Layout) -> u64 {
        let bytes = if layout.packed {
            PackedRecord::bytes(layout.size)
        } else {
            SplitRecord::bytes(layout.size)
        };
        bytes.next_multiple_of(64)
    }

    /// The ring's areas are mapped elsewhere now (VDUSE_UPDATE_IOTLB); `layout` is as before.
    pub fn remap(&mut self, layout: &Layout, areas: Areas) -> Result<(), RingError> {
        let areas = layout.areas(areas)?;
        match &mut self.ring {
            Ring::Split(ring) => ring.remap(areas),
            Ring::Packed(ring) => ring.remap(areas),
        }
        Ok(())
    }

    /// Has what is written into the ring marked from now on, or no more; `layout` is as before. All
    /// that may have been written before is marked at once.
    pub fn set_log(&mut self, layout: &Layout, log: Option<RingLog>) {
        if let Some(log) = &log {
            log.mark_all(layout);
        }
        match &mut self.ring {
            Ring::Split(ring) => ring.set_log(log),
            Ring::Packed(ring) => ring.set_log(log),
        }
    }

    /// Takes the next request into `chain`; false if there is none. After an error every call
    /// returns that error again; requests taken before may still be completed.
    #[inline]
    pub fn pop(&mut self, view: &mut View, chain: &mut Chain) -> Result<bool, RingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let taken = match &mut self.ring {
            Ring::Split(ring) => ring.pop(view, chain),
            Ring::Packed(ring) => ring.pop(view, chain),
        };
        taken.inspect_err(|error| self.failed = Some(*error))
    }

    /// Stages a completion: `written` bytes were written to the writable segments. Any order.
    /// The driver sees it at [`DeviceQueue::publish`]. `id` and `slots` are those of the chain.
    #[inline]
    pub fn complete(&mut self, id: u16, slots: u16, written: u32) {
        match &mut self.ring {
            Ring::Split(ring) => ring.complete(id, written),
            Ring::Packed(ring) => ring.complete(id, slots, written),
        }
    }

    /// Publishes all staged completions at once; whether the driver wants an irq for them.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// Whether [`DeviceQueue::pop`] has something to look at; reads the ring, and writes nothing.
    /// Always false after an error: nothing more is taken.
    #[inline]
    pub fn has_available(&self) -> bool {
        self.failed.is_none()
            && match &self.ring {
                Ring::Split(ring) => ring.has_available(),
                Ring::Packed(ring) => ring.has_available(),
            }
    }

    /// Asks the driver not to kick, until [`DeviceQueue::enable_kicks`].
    #[inline]
    pub fn suppress_kicks(&mut self) {
        match &mut self.ring {
            Ring::Split(ring) => ring.suppress_kicks(),
            Ring::Packed(ring) => ring.suppress_kicks(),
        }
    }

    /// Asks the driver to kick for the next request; true if one is there already, so that
    /// the caller must look again instead of sleeping. Always false after an error: nothing
    /// more is taken.
    #[inline]
    pub fn enable_kicks(&mut self) -> bool {
        if self.failed.is_some() {
            return false;
        }
        match &mut self.ring {
            Ring::Split(ring) => ring.enable_kicks(),
            Ring::Packed(ring) => ring.enable_kicks(),
        }
    }

    /// Requests taken and not yet published, those in [`DeviceQueue::recovered`] included.
    pub fn in_flight(&self) -> u16 {
        match &self.ring {
            Ring::Split(ring) => ring.in_flight(),
            Ring::Packed(ring) => ring.in_flight(),
        }
    }

    /// Requests of the in-flight record that [`DeviceQueue::pop`] has still to yield: a drain
    /// takes them too.
    pub fn recovered(&self) -> u16 {
        match &self.ring {
            Ring::Split(ring) => ring.recovered(),
            Ring::Packed(ring) => ring.recovered(),
        }
    }

    /// Where the queue stands (for VDUSE_GET_VQ_STATE, after a drain).
    pub fn state(&self) -> QueueState {
        match &self.ring {
            Ring::Split(ring) => ring.state(),
            Ring::Packed(ring) => ring.state(),
        }
    }

    /// Whether the memory of this ring was taken away (SIGBUS).
    pub fn is_poisoned(&self) -> bool {
        match &self.ring {
            Ring::Split(ring) => ring.is_poisoned(),
            Ring::Packed(ring) => ring.is_poisoned(),
        }
    }
}

impl fmt::Debug for DeviceQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceQueue")
            .field("state", &self.state())
            .field("in_flight", &self.in_flight())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
