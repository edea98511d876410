//! What both sides of a packed ring share: positions with wrap counters, and event
//! suppression (virtio 1.3, sections 2.8.1 and 2.8.10).

use crate::layout::{DESC_F_AVAIL, DESC_F_USED, crossed};
use crate::shared::Shared;
use std::sync::atomic::Ordering;

/// Offsets in a descriptor.
pub(crate) const DESC_ADDR: usize = 0;
pub(crate) const DESC_LEN: usize = 8;
pub(crate) const DESC_ID: usize = 12;
pub(crate) const DESC_FLAGS: usize = 14;
/// Bytes of a descriptor.
pub(crate) const DESC_BYTES: usize = 16;

const EVENT_DISABLE: u32 = 1;
const EVENT_DESC: u32 = 2;

/// A slot of the ring and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u16,
    pub(crate) wrap: bool,
}

impl Position {
    /// `slots` further on, at most one lap of a ring of `size`.
    #[inline]
    pub(crate) fn advance(self, slots: u16, size: u16) -> Position {
        let index = u32::from(self.index) + u32::from(slots);
        if index >= u32::from(size) {
            Position {
                index: (index - u32::from(size)) as u16,
                wrap: !self.wrap,
            }
        } else {
            Position {
                index: index as u16,
                wrap: self.wrap,
            }
        }
    }

    /// Slots from `back` to here; `None` if the two are no positions at most a lap apart.
    pub(crate) fn since(self, back: Position, size: u16) -> Option<u16> {
        if self.index >= size || back.index >= size {
            return None;
        }
        if self.wrap == back.wrap {
            self.index.checked_sub(back.index)
        } else {
            (self.index <= back.index).then(|| size - back.index + self.index)
        }
    }

    /// Byte offset of the slot's descriptor.
    #[inline]
    pub(crate) fn offset(self) -> usize {
        usize::from(self.index) * DESC_BYTES
    }

    /// AVAIL and USED as the driver sets them to make this slot available.
    #[inline]
    pub(crate) fn avail_flags(self) -> u16 {
        if self.wrap { DESC_F_AVAIL } else { DESC_F_USED }
    }

    /// AVAIL and USED as the device sets them to mark this slot used.
    #[inline]
    pub(crate) fn used_flags(self) -> u16 {
        if self.wrap {
            DESC_F_AVAIL | DESC_F_USED
        } else {
            0
        }
    }

    /// Whether `flags`, read from this slot, make it available.
    #[inline]
    pub(crate) fn is_avail(self, flags: u16) -> bool {
        flags & (DESC_F_AVAIL | DESC_F_USED) == self.avail_flags()
    }

    /// Whether `flags`, read from this slot, mark it used.
    #[inline]
    pub(crate) fn is_used(self, flags: u16) -> bool {
        flags & (DESC_F_AVAIL | DESC_F_USED) == self.used_flags()
    }
}

/// Asks the other side for no events.
pub(crate) fn disable_events(area: &Shared) {
    area.store32(0, EVENT_DISABLE << 16, Ordering::Relaxed);
}

/// Asks the other side for events: for the one that reaches `at` with event indices, for
/// all without.
pub(crate) fn enable_events(area: &Shared, at: Position, event_idx: bool) {
    let value = if event_idx {
        EVENT_DESC << 16 | u32::from(at.wrap) << 15 | u32::from(at.index)
    } else {
        0
    };
    area.store32(0, value, Ordering::Relaxed);
}

/// Whether the other side wants an event for the `added` slots that end before `now`.
/// The caller has fenced its ring writes against this read.
#[inline]
pub(crate) fn wants_event(
    area: &Shared,
    now: Position,
    added: u16,
    size: u16,
    event_idx: bool,
) -> bool {
    let event = area.load32(0, Ordering::Relaxed);
    match event >> 16 & 3 {
        EVENT_DISABLE => false,
        EVENT_DESC if event_idx => {
            let mut at = (event & 0x7fff) as u16;
            if (event >> 15 & 1 == 1) != now.wrap {
                at = at.wrapping_sub(size);
            }
            crossed(at, now.index, now.index.wrapping_sub(added))
        }
        _ => true,
    }
}
