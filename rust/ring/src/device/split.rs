//! Split rings, device side (virtio 1.3, section 2.7).

use super::chain::Collector;
use super::marks::runs;
use super::{Chain, Malformed, RingError, RingLog};
use crate::bits::Bits;
use crate::inflight::SplitRecord;
use crate::layout::{
    DESC_F_INDIRECT, DESC_F_NEXT, Desc, RING_ENTRIES, RING_F_NO_EVENT, RING_FLAGS, RING_IDX,
    crossed,
};
use crate::shared::Shared;
use crate::{Layout, LayoutError, QueueState};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use vduse_mem::{Pinned, View};

/// The device's side of a split ring.
pub(super) struct Split {
    desc: Shared,
    avail: Shared,
    used: Shared,
    size: u16,
    event_idx: bool,
    collector: Collector,
    /// Heads in flight.
    busy: Bits,
    /// Next avail entry to take, and avail.idx as last read.
    next_avail: u16,
    seen_avail: u16,
    /// used.idx as published; entries staged behind it.
    used_idx: u16,
    staged: Vec<u16>,
    in_flight: u16,
    kicks_off: bool,
    record: Option<SplitRecord>,
    /// Heads that a record showed in flight, oldest first.
    recovered: VecDeque<u16>,
    irq_owed: bool,
    log: Option<RingLog>,
}

impl Split {
    pub(super) fn new(
        layout: Layout,
        [desc, avail, used]: [Shared; 3],
        state: QueueState,
        record: Option<Pinned>,
    ) -> Result<Split, RingError> {
        let QueueState::Split { avail_index } = state else {
            return Err(LayoutError::State.into());
        };
        let used_idx = used.load16(RING_IDX, Acquire);
        let mut ring = Split {
            desc,
            avail,
            used,
            size: layout.size,
            event_idx: layout.event_idx,
            collector: Collector::new(&layout),
            busy: Bits::new(layout.size.into()),
            next_avail: avail_index,
            seen_avail: avail_index,
            used_idx,
            staged: Vec::with_capacity(layout.size.into()),
            in_flight: 0,
            kicks_off: false,
            record: None,
            recovered: VecDeque::new(),
            irq_owed: false,
            log: None,
        };
        if let Some(at) = record {
            let (record, open) = SplitRecord::open(at, layout.size, used_idx)?;
            ring.record = Some(record);
            if let Some(heads) = open {
                ring.in_flight = heads.len() as u16;
                ring.next_avail = used_idx.wrapping_add(ring.in_flight);
                ring.seen_avail = ring.next_avail;
                ring.irq_owed = true;
                for &head in &heads {
                    ring.busy.insert(head);
                }
                ring.recovered = heads.into();
            }
        }
        Ok(ring)
    }

    pub(super) fn remap(&mut self, [desc, avail, used]: [Shared; 3]) {
        self.desc = desc;
        self.avail = avail;
        self.used = used;
        // Whatever the flags say in the new place, they are written anew.
        self.kicks_off = false;
    }

    pub(super) fn set_log(&mut self, log: Option<RingLog>) {
        self.log = log;
    }

    #[inline]
    pub(super) fn pop(&mut self, view: &mut View, chain: &mut Chain) -> Result<bool, RingError> {
        if let Some(head) = self.recovered.pop_front() {
            self.walk(view, chain, head)?;
            return Ok(true);
        }
        if self.next_avail == self.seen_avail {
            let avail = self.avail.load16(RING_IDX, Acquire);
            if avail.wrapping_sub(self.next_avail) > self.size {
                return Err(Malformed::AvailIndex {
                    avail,
                    taken: self.next_avail,
                    size: self.size,
                }
                .into());
            }
            if avail == self.next_avail {
                return Ok(false);
            }
            self.seen_avail = avail;
        }
        let head = self.avail.load16(self.entry(self.next_avail, 2), Relaxed);
        if head >= self.size {
            return Err(Malformed::Index(head).into());
        }
        if self.busy.contains(head) {
            return Err(Malformed::Busy(head).into());
        }
        self.walk(view, chain, head)?;
        self.busy.insert(head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight += 1;
        if let Some(record) = &mut self.record {
            record.take(head);
        }
        Ok(true)
    }

    /// Collects the chain that starts at `head`. Zero or more descriptors may come before an
    /// indirect one, which then is the last (section 2.7.5.3.2).
    #[inline]
    fn walk(&mut self, view: &mut View, chain: &mut Chain, head: u16) -> Result<(), RingError> {
        self.collector.start(chain);
        chain.id = head;
        chain.slots = 0;
        let mut index = head;
        loop {
            if chain.slots == self.size {
                return Err(Malformed::TooLong.into());
            }
            chain.slots += 1;
            let desc = self.desc(index);
            if desc.flags & DESC_F_INDIRECT != 0 {
                return self.collector.push_table(view, chain, desc);
            }
            self.collector.push(chain, desc)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            if desc.tag >= self.size {
                return Err(Malformed::Index(desc.tag).into());
            }
            index = desc.tag;
        }
    }

    #[inline]
    fn desc(&self, index: u16) -> Desc {
        let at = usize::from(index) * 16;
        let tail = self.desc.load64(at + 8, Relaxed);
        Desc {
            addr: self.desc.load64(at, Relaxed),
            len: tail as u32,
            flags: (tail >> 32) as u16,
            tag: (tail >> 48) as u16,
            index,
        }
    }

    /// Byte offset of a ring entry of `bytes` bytes.
    #[inline]
    fn entry(&self, position: u16, bytes: usize) -> usize {
        RING_ENTRIES + usize::from(position & (self.size - 1)) * bytes
    }

    #[inline]
    pub(super) fn complete(&mut self, head: u16, written: u32) {
        debug_assert!(self.busy.contains(head) && !self.staged.contains(&head));
        let position = self.used_idx.wrapping_add(self.staged.len() as u16);
        let element = u64::from(head) | u64::from(written) << 32;
        let at = self.entry(position, 8);
        // The area is 4-byte aligned, so an element of 8 bytes may not be.
        self.used.store32(at, element as u32, Relaxed);
        self.used.store32(at + 4, (element >> 32) as u32, Relaxed);
        if let Some(record) = &mut self.record {
            record.stage(head);
        }
        self.staged.push(head);
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let owed = std::mem::take(&mut self.irq_owed);
        if self.staged.is_empty() {
            return owed;
        }
        let old = self.used_idx;
        let new = old.wrapping_add(self.staged.len() as u16);
        self.used.store16(RING_IDX, new, Release);
        self.used_idx = new;
        self.in_flight -= self.staged.len() as u16;
        if let Some(record) = &mut self.record {
            record.published(&self.staged, new);
        }
        for head in self.staged.drain(..) {
            self.busy.remove(head);
        }
        if let Some(log) = &self.log {
            log.mark_device(RING_IDX, 2);
            let first = old & (self.size - 1);
            for (entry, entries) in runs(first, new.wrapping_sub(old), self.size) {
                log.mark_device(RING_ENTRIES + entry * 8, entries * 8);
            }
        }
        // used.idx is visible before the driver's wish is read (section 2.7.7).
        fence(SeqCst);
        owed || if self.event_idx {
            crossed(self.avail.load16(self.entry_end(2), Relaxed), new, old)
        } else {
            self.avail.load16(RING_FLAGS, Relaxed) & RING_F_NO_EVENT == 0
        }
    }

    /// Byte offset behind a ring's entries: the event index.
    #[inline]
    fn entry_end(&self, bytes: usize) -> usize {
        RING_ENTRIES + usize::from(self.size) * bytes
    }

    /// With event indices the flag means nothing: avail_event goes behind what was taken, which
    /// the driver does not reach before it has gone round all indices.
    #[inline]
    pub(super) fn suppress_kicks(&mut self) {
        if self.kicks_off {
            return;
        }
        if self.event_idx {
            let behind = self.next_avail.wrapping_sub(1);
            self.store_wish(self.entry_end(8), behind);
        } else {
            self.store_wish(RING_FLAGS, RING_F_NO_EVENT);
        }
        self.kicks_off = true;
    }

    #[inline]
    pub(super) fn has_available(&self) -> bool {
        self.next_avail != self.seen_avail
            || !self.recovered.is_empty()
            || self.avail.load16(RING_IDX, Acquire) != self.next_avail
    }

    #[inline]
    pub(super) fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.store_wish(self.entry_end(8), self.next_avail);
        } else {
            self.store_wish(RING_FLAGS, 0);
        }
        self.kicks_off = false;
        // The wish is visible before the ring is looked at again (section 2.7.10).
        fence(SeqCst);
        self.has_available()
    }

    /// Tells the driver when to kick.
    #[inline]
    fn store_wish(&self, at: usize, wish: u16) {
        self.used.store16(at, wish, Relaxed);
        if let Some(log) = &self.log {
            log.mark_device(at, 2);
        }
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    pub(super) fn recovered(&self) -> u16 {
        self.recovered.len() as u16
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState::Split {
            avail_index: self.next_avail,
        }
    }

    pub(super) fn is_poisoned(&self) -> bool {
        [&self.desc, &self.avail, &self.used]
            .iter()
            .any(|area| area.is_poisoned())
    }
}
