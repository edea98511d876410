//! What a driver may ask for: the config space's limits and the negotiated features.

use super::wire::{F_DISCARD, F_FLUSH, F_RO, F_SEG_MAX, F_SIZE_MAX, F_WRITE_ZEROES};

/// The limits that the device's config space names (virtio 1.3, section 5.2.4). `capacity`,
/// which changes, is kept apart; `blk_size` and `discard_sector_alignment` are advice to the
/// driver, and nothing is refused for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one data segment, checked with VIRTIO_BLK_F_SIZE_MAX.
    pub size_max: u32,
    /// Most data segments of a request, checked with VIRTIO_BLK_F_SEG_MAX.
    pub seg_max: u32,
    /// Most sectors of one discard range.
    pub max_discard_sectors: u32,
    /// Most ranges of a discard request.
    pub max_discard_seg: u32,
    /// Most sectors of one write-zeroes range.
    pub max_write_zeroes_sectors: u32,
    /// Most ranges of a write-zeroes request.
    pub max_write_zeroes_seg: u32,
    /// A write-zeroes range with the unmap flag gives space back.
    pub write_zeroes_may_unmap: bool,
    /// VIRTIO_BLK_F_RO is offered: writes are refused, accepted or not (section 5.2.6.2).
    pub read_only: bool,
}

/// What holds for the requests of one queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) limits: Limits,
    /// Negotiated feature bits.
    pub(crate) features: u64,
    /// Sectors of 512 bytes, now.
    pub(crate) capacity: u64,
    /// The backend or the device refuses writes.
    pub(crate) read_only: bool,
}

impl Rules {
    /// Whether writes are refused.
    pub(super) fn refuses_writes(&self) -> bool {
        self.read_only || self.has(F_RO)
    }

    /// Whether a write must be stable when it completes: the driver turned FLUSH down
    /// (section 5.2.6.2, what makes a write stable).
    pub(super) fn write_through(&self) -> bool {
        !self.has(F_FLUSH)
    }

    pub(super) fn discards(&self) -> bool {
        self.has(F_DISCARD)
    }

    pub(super) fn writes_zeroes(&self) -> bool {
        self.has(F_WRITE_ZEROES)
    }

    /// Most data segments, and most bytes of one.
    pub(super) fn segment_limits(&self) -> (u32, u32) {
        let limit = |feature, value| {
            if self.has(feature) && value != 0 {
                value
            } else {
                u32::MAX
            }
        };
        (
            limit(F_SEG_MAX, self.limits.seg_max),
            limit(F_SIZE_MAX, self.limits.size_max),
        )
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }
}
