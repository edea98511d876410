//! Split rings, driver side (virtio 1.3, section 2.7).

use super::slots::{Slots, Tables, each};
use super::{AddError, DriverError};
use crate::layout::{
    DESC_F_INDIRECT, DESC_F_NEXT, RING_ENTRIES, RING_F_NO_EVENT, RING_FLAGS, RING_IDX, crossed,
};
use crate::shared::Shared;
use crate::{Layout, Segment};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

/// The driver's side of a split ring.
pub(super) struct Split {
    desc: Shared,
    avail: Shared,
    used: Shared,
    size: u16,
    event_idx: bool,
    tables: Option<Tables>,
    slots: Slots,
    /// The free list, and the links of chains handed out.
    next: Vec<u16>,
    free_head: u16,
    /// avail.idx as published, and requests staged behind it.
    avail_idx: u16,
    staged: u16,
    /// Next used entry to take, and used.idx as last read.
    next_used: u16,
    seen_used: u16,
    irqs_off: bool,
}

impl Split {
    pub(super) fn new(
        layout: &Layout,
        [desc, avail, used]: [Shared; 3],
        tables: Option<Tables>,
    ) -> Split {
        Split {
            desc,
            avail,
            used,
            size: layout.size,
            event_idx: layout.event_idx,
            slots: Slots::new(layout.size, tables.is_some()),
            tables,
            next: (1..=layout.size).collect(),
            free_head: 0,
            avail_idx: 0,
            staged: 0,
            next_used: 0,
            seen_used: 0,
            irqs_off: false,
        }
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    #[inline]
    pub(super) fn add(
        &mut self,
        readable: &[Segment],
        writable: &[Segment],
        token: u32,
    ) -> Result<(), AddError> {
        let segments = readable.len() + writable.len();
        let count = self.slots.room(segments)?;
        let head = self.free_head;
        match &self.tables {
            Some(tables) if self.slots.uses_table(segments) => {
                let table = tables.write(head, readable, writable, false);
                self.free_head = self.next[usize::from(head)];
                self.write_desc(head, table, DESC_F_INDIRECT, 0);
            }
            _ => {
                let mut index = head;
                for (k, segment, write) in each(readable, writable) {
                    let next = self.next[usize::from(index)];
                    if k + 1 < segments {
                        self.write_desc(index, segment, write | DESC_F_NEXT, next);
                    } else {
                        self.write_desc(index, segment, write, 0);
                    }
                    index = next;
                }
                self.free_head = index;
            }
        }
        self.slots.hand_out(head, count, writable, token);
        let at = self.entry(self.avail_idx.wrapping_add(self.staged), 2);
        self.avail.store16(at, head, Relaxed);
        self.staged += 1;
        Ok(())
    }

    #[inline]
    fn write_desc(&self, index: u16, segment: Segment, flags: u16, next: u16) {
        let at = usize::from(index) * 16;
        let tail = u64::from(segment.len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.desc.store64(at, segment.iova.0, Relaxed);
        self.desc.store64(at + 8, tail, Relaxed);
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        if self.staged == 0 {
            return false;
        }
        let old = self.avail_idx;
        let new = old.wrapping_add(self.staged);
        self.avail.store16(RING_IDX, new, Release);
        self.avail_idx = new;
        self.staged = 0;
        self.slots.published();
        // avail.idx is visible before the device's wish is read (section 2.7.13.4).
        fence(SeqCst);
        if self.event_idx {
            let at = RING_ENTRIES + usize::from(self.size) * 8;
            crossed(self.used.load16(at, Relaxed), new, old)
        } else {
            self.used.load16(RING_FLAGS, Relaxed) & RING_F_NO_EVENT == 0
        }
    }

    #[inline]
    pub(super) fn pop_used(&mut self) -> Result<Option<(u32, u32)>, DriverError> {
        if self.next_used == self.seen_used {
            let used = self.used.load16(RING_IDX, Acquire);
            // Published and not yet back: what may be used at most.
            let published = self.slots.in_flight - self.staged;
            if used.wrapping_sub(self.next_used) > published {
                return Err(DriverError::UsedIndex(used));
            }
            if used == self.next_used {
                return Ok(None);
            }
            self.seen_used = used;
        }
        let at = self.entry(self.next_used, 8);
        let id = self.used.load32(at, Relaxed);
        let written = self.used.load32(at + 4, Relaxed);
        let slot = self.slots.take_back(id, written)?;
        self.free_chain(id as u16, slot.count);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some((slot.token, written)))
    }

    /// Puts the `count` descriptors from `head` back on the free list.
    #[inline]
    fn free_chain(&mut self, head: u16, count: u16) {
        let mut last = head;
        for _ in 1..count {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.free_head;
        self.free_head = head;
    }

    /// Byte offset of a ring entry of `bytes` bytes.
    #[inline]
    fn entry(&self, position: u16, bytes: usize) -> usize {
        RING_ENTRIES + usize::from(position & (self.size - 1)) * bytes
    }

    /// With event indices the flag means nothing: used_event goes behind what was taken, which
    /// the device does not reach before it has gone round all indices.
    #[inline]
    pub(super) fn suppress_irqs(&mut self) {
        if self.irqs_off {
            return;
        }
        if self.event_idx {
            let at = RING_ENTRIES + usize::from(self.size) * 2;
            let behind = self.next_used.wrapping_sub(1);
            self.avail.store16(at, behind, Relaxed);
        } else {
            self.avail.store16(RING_FLAGS, RING_F_NO_EVENT, Relaxed);
        }
        self.irqs_off = true;
    }

    #[inline]
    pub(super) fn enable_irqs(&mut self) -> bool {
        if self.event_idx {
            let at = RING_ENTRIES + usize::from(self.size) * 2;
            self.avail.store16(at, self.next_used, Relaxed);
        } else {
            self.avail.store16(RING_FLAGS, 0, Relaxed);
        }
        self.irqs_off = false;
        // The wish is visible before the ring is looked at again (section 2.7.14).
        fence(SeqCst);
        self.used.load16(RING_IDX, Acquire) != self.next_used
    }
}
