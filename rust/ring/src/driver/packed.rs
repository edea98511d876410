//! Packed rings, driver side (virtio 1.3, section 2.8).

use super::slots::{Slots, Tables, each};
use super::{AddError, DriverError};
use crate::layout::{DESC_F_INDIRECT, DESC_F_NEXT};
use crate::packed::{
    DESC_ADDR, DESC_FLAGS, DESC_ID, DESC_LEN, Position, disable_events, enable_events, wants_event,
};
use crate::shared::Shared;
use crate::{Layout, Segment};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

/// The driver's side of a packed ring.
pub(super) struct Packed {
    ring: Shared,
    driver_event: Shared,
    device_event: Shared,
    size: u16,
    event_idx: bool,
    tables: Option<Tables>,
    slots: Slots,
    /// Buffer ids not in use.
    ids: Vec<u16>,
    /// Next slot to write, next slot the device marks used.
    avail: Position,
    used: Position,
    /// The first staged slot and its flags, held back until the batch is published.
    first: Option<(Position, u16)>,
    staged_slots: u16,
    irqs_off: bool,
}

impl Packed {
    pub(super) fn new(
        layout: &Layout,
        [ring, driver_event, device_event]: [Shared; 3],
        tables: Option<Tables>,
    ) -> Packed {
        let start = Position {
            index: 0,
            wrap: true,
        };
        Packed {
            ring,
            driver_event,
            device_event,
            size: layout.size,
            event_idx: layout.event_idx,
            slots: Slots::new(layout.size, tables.is_some()),
            tables,
            ids: (0..layout.size).rev().collect(),
            avail: start,
            used: start,
            first: None,
            staged_slots: 0,
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
        // Every request in flight holds at least one slot: a free slot means a free id.
        let id = self.ids.pop().ok_or(AddError::Full)?;
        match &self.tables {
            Some(tables) if self.slots.uses_table(segments) => {
                let table = tables.write(id, readable, writable, true);
                self.write_desc(table, DESC_F_INDIRECT, id);
            }
            _ => {
                for (k, segment, write) in each(readable, writable) {
                    let next = if k + 1 < segments { DESC_F_NEXT } else { 0 };
                    self.write_desc(segment, write | next, id);
                }
            }
        }
        self.slots.hand_out(id, count, writable, token);
        self.staged_slots += count;
        Ok(())
    }

    /// Writes the next slot; of a batch all but the first become available now, unseen, as the
    /// device reads in ring order.
    #[inline]
    fn write_desc(&mut self, segment: Segment, flags: u16, id: u16) {
        let at = self.avail;
        let offset = at.offset();
        self.ring
            .store64(offset + DESC_ADDR, segment.iova.0, Relaxed);
        self.ring.store32(offset + DESC_LEN, segment.len, Relaxed);
        self.ring.store16(offset + DESC_ID, id, Relaxed);
        let flags = flags | at.avail_flags();
        if self.first.is_none() {
            self.first = Some((at, flags));
        } else {
            self.ring.store16(offset + DESC_FLAGS, flags, Relaxed);
        }
        self.avail = at.advance(1, self.size);
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let Some((at, flags)) = self.first.take() else {
            return false;
        };
        self.ring.store16(at.offset() + DESC_FLAGS, flags, Release);
        let added = std::mem::take(&mut self.staged_slots);
        self.slots.published();
        // The descriptors are visible before the device's wish is read (section 2.8.21.2).
        fence(SeqCst);
        wants_event(
            &self.device_event,
            self.avail,
            added,
            self.size,
            self.event_idx,
        )
    }

    /// The length counts even without WRITE, which QEMU's devices do not set (section 2.8.4
    /// would ignore it); it is checked against the request all the same.
    #[inline]
    pub(super) fn pop_used(&mut self) -> Result<Option<(u32, u32)>, DriverError> {
        if !self.is_used() {
            return Ok(None);
        }
        let offset = self.used.offset();
        let written = self.ring.load32(offset + DESC_LEN, Relaxed);
        let id = self.ring.load16(offset + DESC_ID, Relaxed);
        let slot = self.slots.take_back(id.into(), written)?;
        self.ids.push(id);
        self.used = self.used.advance(slot.count, self.size);
        Ok(Some((slot.token, written)))
    }

    /// Whether the device marked the next slot used. A slot not handed out still carries the
    /// used flags of the lap before, which is another wrap counter's.
    #[inline]
    fn is_used(&self) -> bool {
        let flags = self.ring.load16(self.used.offset() + DESC_FLAGS, Acquire);
        self.used.is_used(flags)
    }

    #[inline]
    pub(super) fn suppress_irqs(&mut self) {
        if !self.irqs_off {
            disable_events(&self.driver_event);
            self.irqs_off = true;
        }
    }

    #[inline]
    pub(super) fn enable_irqs(&mut self) -> bool {
        enable_events(&self.driver_event, self.used, self.event_idx);
        self.irqs_off = false;
        // The wish is visible before the ring is looked at again (section 2.8.22).
        fence(SeqCst);
        self.is_used()
    }
}
