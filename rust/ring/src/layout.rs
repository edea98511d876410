//! What both sides agree on: format, size, the three areas, and where a queue stands.

use crate::shared::Shared;
use vduse_mem::{Iova, Pinned};

/// Format and negotiated features of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Descriptors; a power of two for split rings, 1 to 32768.
    pub size: u16,
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// A layout that the specification does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Size 0, above 32768, or not a power of two in a split ring.
    #[error("queue size {0} is not allowed")]
    Size(u16),
    /// An area is shorter than the layout needs, or unaligned.
    #[error("the {0} area is too short or unaligned")]
    Area(&'static str),
    /// The state is of the other format, or its positions lie outside the ring.
    #[error("the queue state does not fit the queue")]
    State,
}

impl Layout {
    /// Bytes of the descriptor, driver (avail / driver event) and device (used / device
    /// event) areas (virtio 1.3, sections 2.7 and 2.8.10.1).
    pub fn area_sizes(&self) -> [u64; 3] {
        let size = u64::from(self.size);
        if self.packed {
            [16 * size, 4, 4]
        } else {
            [16 * size, 6 + 2 * size, 6 + 8 * size]
        }
    }

    /// Checks the size against the format.
    pub fn check(&self) -> Result<(), LayoutError> {
        let fits = (1..=32768).contains(&self.size);
        if fits && (self.packed || self.size.is_power_of_two()) {
            Ok(())
        } else {
            Err(LayoutError::Size(self.size))
        }
    }

    /// The three areas, checked against this layout.
    pub(crate) fn areas(&self, areas: Areas) -> Result<[Shared; 3], LayoutError> {
        self.check()?;
        let [desc, driver, device] = self.area_sizes();
        let driver_align = if self.packed { 4 } else { 2 };
        Ok([
            Shared::new(areas.desc, desc, 16).ok_or(LayoutError::Area("descriptor"))?,
            Shared::new(areas.driver, driver, driver_align).ok_or(LayoutError::Area("driver"))?,
            Shared::new(areas.device, device, 4).ok_or(LayoutError::Area("device"))?,
        ])
    }
}

/// The three areas of a virtqueue, mapped. The device side writes to `device` and, in a packed
/// ring, to `desc`: those must be mapped writable.
#[derive(Clone, Debug)]
pub struct Areas {
    /// Descriptor table (split) or descriptor ring (packed).
    pub desc: Pinned,
    /// Avail ring (split) or driver event suppression (packed).
    pub driver: Pinned,
    /// Used ring (split) or device event suppression (packed).
    pub device: Pinned,
}

/// One descriptor's buffer, as the driver wrote it: an I/O virtual address, untranslated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub iova: Iova,
    /// Bytes.
    pub len: u32,
}

/// Where a queue stands (`vduse_vq_state_split` and `_packed` of linux/vduse.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// Next avail index to be taken.
    Split {
        /// Free-running 16-bit index.
        avail_index: u16,
    },
    /// Ring positions and wrap counters.
    Packed {
        /// Next descriptor to be taken.
        avail_index: u16,
        /// Its wrap counter.
        avail_wrap: bool,
        /// Next descriptor to be written as used.
        used_index: u16,
        /// Its wrap counter.
        used_wrap: bool,
    },
}

impl QueueState {
    /// The state of a queue just reset: split 0; packed 0 with both wrap counters 1.
    pub fn initial(packed: bool) -> QueueState {
        if packed {
            QueueState::Packed {
                avail_index: 0,
                avail_wrap: true,
                used_index: 0,
                used_wrap: true,
            }
        } else {
            QueueState::Split { avail_index: 0 }
        }
    }
}

/// A descriptor, read out of shared memory once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    /// Split: next index. Packed: buffer id.
    pub(crate) tag: u16,
    /// Where it stood in its table or ring.
    pub(crate) index: u16,
}

/// The descriptor continues at `next` (split) or in the next slot (packed).
pub(crate) const DESC_F_NEXT: u16 = 1;
/// Device-writable.
pub(crate) const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(crate) const DESC_F_INDIRECT: u16 = 4;
/// Packed: the driver's wrap counter.
pub(crate) const DESC_F_AVAIL: u16 = 1 << 7;
/// Packed: the device's wrap counter.
pub(crate) const DESC_F_USED: u16 = 1 << 15;

/// Split: VIRTQ_AVAIL_F_NO_INTERRUPT and VIRTQ_USED_F_NO_NOTIFY.
pub(crate) const RING_F_NO_EVENT: u16 = 1;

/// Offsets in both rings of the split format.
pub(crate) const RING_FLAGS: usize = 0;
pub(crate) const RING_IDX: usize = 2;
pub(crate) const RING_ENTRIES: usize = 4;

/// The event index test of section 2.7.7.2 and 2.7.10: whether `event` lies in [old, new).
#[inline]
pub(crate) fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
