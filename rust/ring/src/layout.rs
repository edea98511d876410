//! What both sides agree on: format, size, the three areas, and where a queue stands.

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
}

impl Layout {
    /// Bytes of the descriptor, driver (avail / driver event) and device (used / device
    /// event) areas.
    pub fn area_sizes(&self) -> [u64; 3] {
        todo!()
    }

    /// Checks the size against the format.
    pub fn check(&self) -> Result<(), LayoutError> {
        todo!()
    }
}

/// The three areas of a virtqueue, mapped.
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
