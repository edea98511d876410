//! The driver's side of a virtqueue. The device is not trusted either: used ids and lengths
//! are checked against what was handed out.

mod packed;
mod slots;
mod split;

use crate::{Areas, Layout, RingError, Segment};
use slots::{Slots, Tables};
use std::fmt;
use vduse_mem::{Iova, Pinned};

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
pub struct DriverQueue {
    ring: Ring,
    failed: Option<DriverError>,
}

enum Ring {
    Split(split::Split),
    Packed(packed::Packed),
}

impl DriverQueue {
    /// A fresh queue in zeroed areas. With `layout.indirect`, `indirect` is memory for one
    /// table per ring slot, `(host memory, IOVA of its first byte)`, each
    /// [`DriverQueue::INDIRECT_SEGMENTS`] descriptors long.
    pub fn new(
        layout: Layout,
        areas: Areas,
        indirect: Option<(Pinned, Iova)>,
    ) -> Result<DriverQueue, RingError> {
        let areas = layout.areas(areas)?;
        let tables = indirect
            .filter(|_| layout.indirect)
            .map(|(memory, iova)| Tables::new(memory, iova, &layout))
            .transpose()?;
        let ring = if layout.packed {
            Ring::Packed(packed::Packed::new(&layout, areas, tables))
        } else {
            Ring::Split(split::Split::new(&layout, areas, tables))
        };
        Ok(DriverQueue { ring, failed: None })
    }

    /// Most segments of a request that goes through an indirect table.
    pub const INDIRECT_SEGMENTS: usize = 16;

    /// Stages a request; `token` comes back from [`DriverQueue::pop_used`]. Requests of more
    /// than one segment use an indirect table where that was negotiated. A request of no
    /// segments is [`AddError::TooLarge`] too.
    #[inline]
    pub fn add(
        &mut self,
        readable: &[Segment],
        writable: &[Segment],
        token: u32,
    ) -> Result<(), AddError> {
        match &mut self.ring {
            Ring::Split(ring) => ring.add(readable, writable, token),
            Ring::Packed(ring) => ring.add(readable, writable, token),
        }
    }

    /// Makes all staged requests available at once; whether the device wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// The next completed request: its token and the bytes the device says it wrote. After an
    /// error every call returns that error again.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<(u32, u32)>, DriverError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let used = match &mut self.ring {
            Ring::Split(ring) => ring.pop_used(),
            Ring::Packed(ring) => ring.pop_used(),
        };
        used.inspect_err(|error| self.failed = Some(*error))
    }

    /// Asks the device not to send irqs.
    #[inline]
    pub fn suppress_irqs(&mut self) {
        match &mut self.ring {
            Ring::Split(ring) => ring.suppress_irqs(),
            Ring::Packed(ring) => ring.suppress_irqs(),
        }
    }

    /// Asks the device for an irq; true if a completion is there already.
    #[inline]
    pub fn enable_irqs(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.enable_irqs(),
            Ring::Packed(ring) => ring.enable_irqs(),
        }
    }

    /// Requests handed out and not yet back.
    pub fn in_flight(&self) -> u16 {
        self.slots().in_flight
    }

    /// Tokens of all requests handed out and not yet back (for failing them).
    pub fn outstanding(&self) -> Vec<u32> {
        let slots = self.slots().slots.iter();
        slots
            .filter(|slot| slot.count > 0)
            .map(|slot| slot.token)
            .collect()
    }

    /// Whether a request of `segments` segments can be added now.
    #[inline]
    pub fn has_room(&self, segments: usize) -> bool {
        self.slots().room(segments).is_ok()
    }

    fn slots(&self) -> &Slots {
        match &self.ring {
            Ring::Split(ring) => ring.slots(),
            Ring::Packed(ring) => ring.slots(),
        }
    }
}

impl fmt::Debug for DriverQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DriverQueue")
            .field("in_flight", &self.in_flight())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
