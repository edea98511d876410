//! Packed rings, device side (virtio 1.3, section 2.8).

use super::chain::Collector;
use super::marks::runs;
use super::{Chain, Malformed, RingError, RingLog};
use crate::bits::Bits;
use crate::inflight::{OpenPacked, PackedRecord};
use crate::layout::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Desc};
use crate::packed::{
    DESC_ADDR, DESC_BYTES, DESC_FLAGS, DESC_ID, DESC_LEN, Position, disable_events, enable_events,
    wants_event,
};
use crate::shared::Shared;
use crate::{Layout, LayoutError, QueueState};
use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use vduse_mem::{Pinned, View};

/// Buffer ids are the driver's choice among all 16-bit values (section 2.8.13).
const IDS: usize = 1 << 16;

/// A completion that the driver does not see yet.
#[derive(Clone, Copy)]
struct Staged {
    id: u16,
    slots: u16,
    written: u32,
}

/// The device's side of a packed ring.
pub(super) struct Packed {
    ring: Shared,
    driver_event: Shared,
    device_event: Shared,
    size: u16,
    event_idx: bool,
    collector: Collector,
    /// Ids in flight.
    busy: Bits,
    /// Next slot to take, next slot to mark used, and the slots between them.
    avail: Position,
    used: Position,
    open_slots: u16,
    in_flight: u16,
    staged: Vec<Staged>,
    staged_slots: u16,
    /// The chain being taken, as it stood in the ring.
    descs: Vec<Desc>,
    kicks_off: bool,
    record: Option<PackedRecord>,
    /// Chains that a record showed in flight, oldest first.
    recovered: VecDeque<Vec<Desc>>,
    irq_owed: bool,
    log: Option<RingLog>,
}

impl Packed {
    pub(super) fn new(
        layout: Layout,
        [ring, driver_event, device_event]: [Shared; 3],
        state: QueueState,
        record: Option<Pinned>,
    ) -> Result<Packed, RingError> {
        let QueueState::Packed {
            avail_index,
            avail_wrap,
            used_index,
            used_wrap,
        } = state
        else {
            return Err(LayoutError::State.into());
        };
        let size = layout.size;
        let mut avail = Position {
            index: avail_index,
            wrap: avail_wrap,
        };
        let mut used = Position {
            index: used_index,
            wrap: used_wrap,
        };
        let mut open_slots = avail.since(used, size).ok_or(LayoutError::State)?;
        let mut busy = Bits::new(IDS);
        let mut recovered = VecDeque::new();
        let mut irq_owed = false;
        let record = match record {
            None => None,
            Some(at) => {
                let (record, open) = PackedRecord::open(at, size, used, &ring)?;
                if let Some(OpenPacked { chains, at, slots }) = open {
                    used = at;
                    avail = at.advance(slots, size);
                    open_slots = slots;
                    irq_owed = true;
                    for chain in &chains {
                        busy.insert(chain[chain.len() - 1].tag);
                    }
                    recovered = chains.into();
                }
                Some(record)
            }
        };
        Ok(Packed {
            ring,
            driver_event,
            device_event,
            size,
            event_idx: layout.event_idx,
            collector: Collector::new(&layout),
            busy,
            avail,
            used,
            open_slots,
            in_flight: recovered.len() as u16,
            staged: Vec::with_capacity(size.into()),
            staged_slots: 0,
            descs: Vec::with_capacity(4),
            kicks_off: false,
            record,
            recovered,
            irq_owed,
            log: None,
        })
    }

    pub(super) fn remap(&mut self, [ring, driver_event, device_event]: [Shared; 3]) {
        self.ring = ring;
        self.driver_event = driver_event;
        self.device_event = device_event;
        // Whatever the flags say in the new place, they are written anew.
        self.kicks_off = false;
    }

    pub(super) fn set_log(&mut self, log: Option<RingLog>) {
        self.log = log;
    }

    #[inline]
    pub(super) fn pop(&mut self, view: &mut View, chain: &mut Chain) -> Result<bool, RingError> {
        if let Some(descs) = self.recovered.pop_front() {
            self.collect(view, chain, &descs)?;
            return Ok(true);
        }
        let flags = self.flags(self.avail, Acquire);
        if !self.avail.is_avail(flags) {
            return Ok(false);
        }
        let mut descs = std::mem::take(&mut self.descs);
        let taken = self.take(view, chain, flags, &mut descs);
        self.descs = descs;
        taken.map(|()| true)
    }

    /// Takes the chain whose first descriptor has `flags`, by way of `descs`.
    #[inline]
    fn take(
        &mut self,
        view: &mut View,
        chain: &mut Chain,
        flags: u16,
        descs: &mut Vec<Desc>,
    ) -> Result<(), RingError> {
        descs.clear();
        let mut at = self.avail;
        let mut flags = flags;
        loop {
            // A slot that the device has not given back cannot hold a new descriptor.
            if descs.len() == usize::from(self.size - self.open_slots) {
                return Err(Malformed::TooLong.into());
            }
            descs.push(self.desc(at, flags));
            at = at.advance(1, self.size);
            if flags & DESC_F_NEXT == 0 {
                break;
            }
            flags = self.flags(at, Relaxed);
            if !at.is_avail(flags) {
                return Err(Malformed::NotAvailable(at.index).into());
            }
        }
        self.collect(view, chain, descs)?;
        if !self.busy.insert(chain.id) {
            return Err(Malformed::Busy(chain.id).into());
        }
        self.avail = at;
        self.open_slots += chain.slots;
        self.in_flight += 1;
        if let Some(record) = &mut self.record {
            record.take(descs);
        }
        Ok(())
    }

    /// Turns the descriptors of one list into `chain`. An indirect descriptor stands alone
    /// (section 2.8.19).
    #[inline]
    fn collect(
        &mut self,
        view: &mut View,
        chain: &mut Chain,
        descs: &[Desc],
    ) -> Result<(), RingError> {
        self.collector.start(chain);
        chain.id = descs[descs.len() - 1].tag;
        chain.slots = descs.len() as u16;
        for &desc in descs {
            if desc.flags & DESC_F_INDIRECT == 0 {
                self.collector.push(chain, desc)?;
            } else if descs.len() == 1 {
                self.collector.push_table(view, chain, desc)?;
            } else {
                return Err(Malformed::Indirect.into());
            }
        }
        Ok(())
    }

    #[inline]
    fn flags(&self, at: Position, order: std::sync::atomic::Ordering) -> u16 {
        self.ring.load16(at.offset() + DESC_FLAGS, order)
    }

    #[inline]
    fn desc(&self, at: Position, flags: u16) -> Desc {
        Desc {
            addr: self.ring.load64(at.offset() + DESC_ADDR, Relaxed),
            len: self.ring.load32(at.offset() + DESC_LEN, Relaxed),
            tag: self.ring.load16(at.offset() + DESC_ID, Relaxed),
            flags,
            index: at.index,
        }
    }

    #[inline]
    pub(super) fn complete(&mut self, id: u16, slots: u16, written: u32) {
        debug_assert!(self.busy.contains(id) && self.staged.iter().all(|done| done.id != id));
        self.staged_slots += slots;
        self.staged.push(Staged { id, slots, written });
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let owed = std::mem::take(&mut self.irq_owed);
        let slots = self.staged_slots;
        if self.staged.is_empty() {
            return owed;
        }
        let end = self.used.advance(slots, self.size);
        if let Some(record) = &mut self.record {
            for done in &self.staged {
                record.stage(done.id);
            }
            record.publishing(end);
        }
        self.write_used();
        if let Some(log) = &self.log {
            for (slot, slots) in runs(self.used.index, slots, self.size) {
                log.mark_desc(slot * DESC_BYTES, slots * DESC_BYTES);
            }
        }
        self.used = end;
        self.open_slots -= slots;
        self.in_flight -= self.staged.len() as u16;
        self.staged_slots = 0;
        for done in self.staged.drain(..) {
            self.busy.remove(done.id);
            if let Some(record) = &mut self.record {
                record.published(done.id);
            }
        }
        if let Some(record) = &mut self.record {
            record.commit();
        }
        // The used flags are visible before the driver's wish is read (section 2.8.10).
        fence(SeqCst);
        owed || wants_event(&self.driver_event, end, slots, self.size, self.event_idx)
    }

    /// Writes the used descriptors, the first one's flags last: the driver reads in ring
    /// order, so that store publishes the batch.
    #[inline]
    fn write_used(&self) {
        let first = self.used;
        let mut at = first;
        for (k, done) in self.staged.iter().enumerate() {
            self.ring
                .store32(at.offset() + DESC_LEN, done.written, Relaxed);
            self.ring.store16(at.offset() + DESC_ID, done.id, Relaxed);
            if k > 0 {
                let flags = used_flags(at, done);
                self.ring.store16(at.offset() + DESC_FLAGS, flags, Relaxed);
            }
            at = at.advance(done.slots, self.size);
        }
        let flags = used_flags(first, &self.staged[0]);
        self.ring
            .store16(first.offset() + DESC_FLAGS, flags, Release);
    }

    #[inline]
    pub(super) fn suppress_kicks(&mut self) {
        if !self.kicks_off {
            disable_events(&self.device_event);
            self.mark_event();
            self.kicks_off = true;
        }
    }

    #[inline]
    pub(super) fn has_available(&self) -> bool {
        !self.recovered.is_empty() || self.avail.is_avail(self.flags(self.avail, Acquire))
    }

    #[inline]
    pub(super) fn enable_kicks(&mut self) -> bool {
        enable_events(&self.device_event, self.avail, self.event_idx);
        self.mark_event();
        self.kicks_off = false;
        // The wish is visible before the ring is looked at again (section 2.8.10).
        fence(SeqCst);
        self.has_available()
    }

    #[inline]
    fn mark_event(&self) {
        if let Some(log) = &self.log {
            log.mark_device(0, 4);
        }
    }

    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight
    }

    pub(super) fn recovered(&self) -> u16 {
        self.recovered.len() as u16
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState::Packed {
            avail_index: self.avail.index,
            avail_wrap: self.avail.wrap,
            used_index: self.used.index,
            used_wrap: self.used.wrap,
        }
    }

    pub(super) fn is_poisoned(&self) -> bool {
        [&self.ring, &self.driver_event, &self.device_event]
            .iter()
            .any(|area| area.is_poisoned())
    }
}

/// Flags of a used descriptor: WRITE says that the length counts (section 2.8.4).
#[inline]
fn used_flags(at: Position, done: &Staged) -> u16 {
    let write = if done.written > 0 { DESC_F_WRITE } else { 0 };
    at.used_flags() | write
}
