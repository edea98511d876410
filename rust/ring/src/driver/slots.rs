//! What the driver keeps to itself about each request handed out, and its indirect tables.

use super::{AddError, DriverError, DriverQueue};
use crate::layout::{DESC_F_NEXT, DESC_F_WRITE};
use crate::shared::Shared;
use crate::{Layout, LayoutError, Segment};
use std::sync::atomic::Ordering::Relaxed;
use vduse_mem::{Iova, Pinned};

/// One request, at its head index (split) or buffer id (packed).
#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    pub(super) token: u32,
    /// Bytes of the writable segments.
    pub(super) room: u32,
    /// Ring descriptors taken; 0: not handed out.
    pub(super) count: u16,
    /// The batch it was staged in.
    batch: u32,
}

/// All requests of one queue, and how many descriptors are left.
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    pub(super) free: u16,
    pub(super) in_flight: u16,
    /// Counts publishes: what is staged now has this number.
    batch: u32,
    indirect: bool,
}

impl Slots {
    pub(super) fn new(size: u16, indirect: bool) -> Slots {
        Slots {
            slots: vec![Slot::default(); size.into()],
            free: size,
            in_flight: 0,
            batch: 0,
            indirect,
        }
    }

    /// Ring descriptors that a request of `segments` segments takes, if they are there.
    #[inline]
    pub(super) fn room(&self, segments: usize) -> Result<u16, AddError> {
        let size = self.slots.len();
        if segments == 0 || segments > size {
            return Err(AddError::TooLarge(segments));
        }
        let count = if self.uses_table(segments) {
            1
        } else {
            segments as u16
        };
        if count <= self.free {
            Ok(count)
        } else {
            Err(AddError::Full)
        }
    }

    /// Whether a request of `segments` segments goes through an indirect table.
    #[inline]
    pub(super) fn uses_table(&self, segments: usize) -> bool {
        self.indirect && segments > 1 && segments <= DriverQueue::INDIRECT_SEGMENTS
    }

    /// Hands out slot `index`, to be used once the batch is published.
    #[inline]
    pub(super) fn hand_out(&mut self, index: u16, count: u16, writable: &[Segment], token: u32) {
        let room: u64 = writable.iter().map(|segment| u64::from(segment.len)).sum();
        self.slots[usize::from(index)] = Slot {
            token,
            room: u32::try_from(room).unwrap_or(u32::MAX),
            count,
            batch: self.batch,
        };
        self.free -= count;
        self.in_flight += 1;
    }

    /// All that is staged is available to the device from now on.
    #[inline]
    pub(super) fn published(&mut self) {
        self.batch = self.batch.wrapping_add(1);
    }

    /// Takes back the request that the device says it used, after checking its claim: one that
    /// is only staged it cannot have used.
    #[inline]
    pub(super) fn take_back(&mut self, id: u32, written: u32) -> Result<Slot, DriverError> {
        let slot = usize::try_from(id)
            .ok()
            .and_then(|index| self.slots.get_mut(index))
            .filter(|slot| slot.count > 0 && slot.batch != self.batch)
            .ok_or(DriverError::UnknownId(id))?;
        if written > slot.room {
            return Err(DriverError::Length {
                written,
                room: slot.room,
            });
        }
        let taken = std::mem::take(slot);
        self.free += taken.count;
        self.in_flight -= 1;
        Ok(taken)
    }
}

/// Indirect tables, one a slot.
pub(super) struct Tables {
    memory: Shared,
    iova: Iova,
}

/// Bytes of one table.
const TABLE: u64 = DriverQueue::INDIRECT_SEGMENTS as u64 * 16;

impl Tables {
    pub(super) fn new(memory: Pinned, iova: Iova, layout: &Layout) -> Result<Tables, LayoutError> {
        let bytes = TABLE * u64::from(layout.size);
        let memory = Shared::new(memory, bytes, 16).ok_or(LayoutError::Area("indirect"))?;
        iova.last(bytes).ok_or(LayoutError::Area("indirect"))?;
        Ok(Tables { memory, iova })
    }

    /// Writes the table of slot `index`; where it lies and its length in bytes. Split entries
    /// are linked; of packed ones only WRITE has a meaning.
    #[inline]
    pub(super) fn write(
        &self,
        index: u16,
        readable: &[Segment],
        writable: &[Segment],
        packed: bool,
    ) -> Segment {
        let offset = TABLE * u64::from(index);
        let count = readable.len() + writable.len();
        for (k, segment, write) in each(readable, writable) {
            let at = offset as usize + k * 16;
            self.memory.store64(at, segment.iova.0, Relaxed);
            let tail = if packed {
                u64::from(write) << 48
            } else if k + 1 < count {
                u64::from(write | DESC_F_NEXT) << 32 | ((k + 1) as u64) << 48
            } else {
                u64::from(write) << 32
            };
            self.memory
                .store64(at + 8, u64::from(segment.len) | tail, Relaxed);
        }
        Segment {
            iova: Iova(self.iova.0 + offset),
            len: count as u32 * 16,
        }
    }
}

/// A request's segments in order, with their position and DESC_F_WRITE where writable.
#[inline]
pub(super) fn each<'a>(
    readable: &'a [Segment],
    writable: &'a [Segment],
) -> impl Iterator<Item = (usize, Segment, u16)> + 'a {
    let readable = readable.iter().map(|segment| (*segment, 0));
    let writable = writable.iter().map(|segment| (*segment, DESC_F_WRITE));
    readable
        .chain(writable)
        .enumerate()
        .map(|(k, (segment, write))| (k, segment, write))
}
