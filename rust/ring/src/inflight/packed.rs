//! `QueueRegionPacked` and `DescStatePacked`.
//!
//! Used descriptors overwrite available ones, so the record keeps a copy of every descriptor
//! in flight. Its entries form a free list and the chains in flight.
//!
//! Beyond the specification's text: used_idx, old_used_idx and their wrap counters share one
//! aligned 64-bit word, and free_head and old_free_head one 32-bit word. Each word is stored
//! at once, for a crash between two fields would mix positions of two laps. And a batch that
//! was cut off before its first descriptor became used may have left later ones marked used:
//! recovery makes those available again, or the driver would find them behind the next batch.

use super::{RingError, is_written, mark_written};
use crate::bits::Bits;
use crate::layout::Desc;
use crate::packed::{DESC_FLAGS, Position};
use crate::shared::Shared;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use vduse_mem::Pinned;

/// free_head and old_free_head; used_idx, old_used_idx and the two wrap counters.
const FREE_HEADS: usize = 12;
const USED: usize = 16;
const HEADER: usize = 32;

/// Offsets in `DescStatePacked`, and its size.
const INFLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;
const STATE: usize = 32;

/// What a record showed in flight.
pub(crate) struct OpenPacked {
    /// The descriptors of each request, oldest request first.
    pub(crate) chains: Vec<Vec<Desc>>,
    /// The next slot to be marked used.
    pub(crate) at: Position,
    /// Slots in flight from there.
    pub(crate) slots: u16,
}

/// The record of one packed queue.
pub(crate) struct PackedRecord {
    mem: Shared,
    counter: u64,
    /// The list of free entries, ended by the queue's size; `next` links chains in flight too.
    free_head: u16,
    next: Vec<u16>,
    /// free_head and position of the last committed state.
    old_free_head: u16,
    old_used: Position,
    used: Position,
    /// First and last entry of the chain with a buffer id, by id.
    entry: Vec<u16>,
    last: Vec<u16>,
}

impl PackedRecord {
    /// Bytes of a record for `size` descriptors.
    pub(crate) fn bytes(size: u16) -> u64 {
        (HEADER + STATE * usize::from(size)) as u64
    }

    /// Opens the record of a queue; `used` is where a fresh one starts. For one that was
    /// written before: what is in flight in `ring`.
    pub(crate) fn open(
        at: Pinned,
        size: u16,
        used: Position,
        ring: &Shared,
    ) -> Result<(PackedRecord, Option<OpenPacked>), RingError> {
        let mem = Shared::new(at, PackedRecord::bytes(size), 8)
            .ok_or(RingError::Inflight("too short or unaligned"))?;
        let mut record = PackedRecord {
            mem,
            counter: 0,
            free_head: 0,
            next: (1..=size).collect(),
            old_free_head: 0,
            old_used: used,
            used,
            // Zeroed on demand: ids are any 16-bit value, but in practice small.
            entry: vec![0; 1 << 16],
            last: vec![0; size.into()],
        };
        let open = if is_written(&record.mem, size)? {
            Some(record.recover(size, ring)?)
        } else {
            for offset in (HEADER..PackedRecord::bytes(size) as usize).step_by(8) {
                record.mem.store64(offset, 0, Relaxed);
            }
            for (index, &next) in (0..size).zip(&record.next) {
                record.mem.store16(state(index) + NEXT, next, Relaxed);
            }
            record.store_free_heads();
            record.store_used();
            mark_written(&record.mem, size);
            None
        };
        Ok((record, open))
    }

    fn recover(&mut self, size: u16, ring: &Shared) -> Result<OpenPacked, RingError> {
        let heads = self.mem.load32(FREE_HEADS, Relaxed);
        let word = self.mem.load64(USED, Relaxed);
        self.free_head = heads as u16;
        self.old_free_head = (heads >> 16) as u16;
        self.used = position(word as u16, (word >> 32) as u8, size)?;
        self.old_used = position((word >> 16) as u16, (word >> 40) as u8, size)?;
        if self.used != self.old_used {
            // The batch took effect if the driver's descriptor at its start is no longer there.
            let flags = ring.load16(self.old_used.offset() + DESC_FLAGS, Acquire);
            if !self.old_used.is_avail(flags) {
                self.old_used = self.used;
                self.old_free_head = self.free_head;
            }
        }
        self.used = self.old_used;
        self.free_head = self.old_free_head;

        let mut seen = Bits::new(size.into());
        self.recover_free(size, &mut seen)?;
        let chains = self.recover_chains(size, &mut seen)?;
        let slots: usize = chains.iter().map(Vec::len).sum();
        self.store_free_heads();
        self.store_used();

        let mut at = self.used;
        for _ in 0..slots {
            let offset = at.offset() + DESC_FLAGS;
            if at.is_used(ring.load16(offset, Relaxed)) {
                ring.store16(offset, at.avail_flags(), Relaxed);
            }
            at = at.advance(1, size);
        }
        Ok(OpenPacked {
            chains,
            at: self.used,
            slots: slots as u16,
        })
    }

    /// Walks the free list: nothing on it is in flight.
    fn recover_free(&mut self, size: u16, seen: &mut Bits) -> Result<(), RingError> {
        let mut index = self.free_head;
        while index != size {
            if index > size {
                return Err(RingError::Inflight("index out of range"));
            }
            if !seen.insert(index) {
                return Err(RingError::Inflight("free list loops"));
            }
            self.next[usize::from(index)] = self.mem.load16(state(index) + NEXT, Relaxed);
            index = self.next[usize::from(index)];
        }
        Ok(())
    }

    /// Collects the chains in flight: together with the free list they are all entries.
    fn recover_chains(&mut self, size: u16, seen: &mut Bits) -> Result<Vec<Vec<Desc>>, RingError> {
        let mut open = Vec::new();
        let mut ids = Bits::new(1 << 16);
        for head in 0..size {
            if seen.contains(head) {
                self.mem.store8(state(head) + INFLIGHT, 0, Relaxed);
            } else if self.mem.load8(state(head) + INFLIGHT, Relaxed) != 0 {
                open.push((self.mem.load64(state(head) + COUNTER, Relaxed), head));
            }
        }
        open.sort_unstable();
        self.counter = open
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        let mut chains = Vec::with_capacity(open.len());
        for (_, head) in open {
            let chain = self.recover_chain(size, head, seen)?;
            let id = chain[chain.len() - 1].tag;
            if !ids.insert(id) {
                return Err(RingError::Inflight("buffer id in flight twice"));
            }
            self.entry[usize::from(id)] = head;
            chains.push(chain);
        }
        if (0..size).all(|index| seen.contains(index)) {
            Ok(chains)
        } else {
            Err(RingError::Inflight("entries neither free nor in flight"))
        }
    }

    fn recover_chain(
        &mut self,
        size: u16,
        head: u16,
        seen: &mut Bits,
    ) -> Result<Vec<Desc>, RingError> {
        let num = self.mem.load16(state(head) + NUM, Relaxed);
        let last = self.mem.load16(state(head) + LAST, Relaxed);
        if num == 0 || num > size {
            return Err(RingError::Inflight("chain of an impossible length"));
        }
        let mut chain = Vec::with_capacity(num.into());
        let mut index = head;
        for k in 0..num {
            if index >= size {
                return Err(RingError::Inflight("index out of range"));
            }
            if !seen.insert(index) {
                return Err(RingError::Inflight("chains loop or meet"));
            }
            let at = state(index);
            chain.push(Desc {
                addr: self.mem.load64(at + ADDR, Relaxed),
                len: self.mem.load32(at + LEN, Relaxed),
                flags: self.mem.load16(at + FLAGS, Relaxed),
                tag: self.mem.load16(at + ID, Relaxed),
                index,
            });
            if k + 1 < num {
                self.next[usize::from(index)] = self.mem.load16(at + NEXT, Relaxed);
                index = self.next[usize::from(index)];
            }
        }
        if index != last {
            return Err(RingError::Inflight("chain does not end where it says"));
        }
        self.last[usize::from(head)] = last;
        Ok(chain)
    }

    /// The chain `descs` was taken from the ring.
    #[inline]
    pub(crate) fn take(&mut self, descs: &[Desc]) {
        let head = self.free_head;
        let mut last = head;
        for desc in descs {
            last = self.free_head;
            let at = state(last);
            self.mem.store64(at + ADDR, desc.addr, Relaxed);
            self.mem.store32(at + LEN, desc.len, Relaxed);
            self.mem.store16(at + FLAGS, desc.flags, Relaxed);
            self.mem.store16(at + ID, desc.tag, Relaxed);
            self.free_head = self.next[usize::from(last)];
        }
        self.entry[usize::from(descs[descs.len() - 1].tag)] = head;
        self.last[usize::from(head)] = last;
        let at = state(head);
        self.mem.store16(at + LAST, last, Relaxed);
        self.mem.store16(at + NUM, descs.len() as u16, Relaxed);
        self.mem.store64(at + COUNTER, self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.mem.store8(at + INFLIGHT, 1, Release);
        // From here on the chain is in flight: until then it is on the free list.
        self.old_free_head = self.free_head;
        self.store_free_heads();
    }

    /// The request with buffer id `id` joins the batch that is published next.
    #[inline]
    pub(crate) fn stage(&mut self, id: u16) {
        let head = self.entry[usize::from(id)];
        let last = self.last[usize::from(head)];
        self.next[usize::from(last)] = self.free_head;
        self.mem
            .store16(state(last) + NEXT, self.free_head, Relaxed);
        self.free_head = head;
    }

    /// The staged requests are about to be marked used; `end` is the next slot after them.
    #[inline]
    pub(crate) fn publishing(&mut self, end: Position) {
        self.used = end;
        self.store_free_heads();
        self.store_used();
    }

    /// The used descriptor of the request with buffer id `id` is in the ring.
    #[inline]
    pub(crate) fn published(&mut self, id: u16) {
        let head = self.entry[usize::from(id)];
        self.mem.store8(state(head) + INFLIGHT, 0, Release);
    }

    /// All of the batch is published and off the record.
    #[inline]
    pub(crate) fn commit(&mut self) {
        self.old_free_head = self.free_head;
        self.old_used = self.used;
        self.store_free_heads();
        self.store_used();
    }

    #[inline]
    fn store_free_heads(&self) {
        let word = u32::from(self.free_head) | u32::from(self.old_free_head) << 16;
        self.mem.store32(FREE_HEADS, word, Release);
    }

    #[inline]
    fn store_used(&self) {
        let word = u64::from(self.used.index)
            | u64::from(self.old_used.index) << 16
            | u64::from(self.used.wrap) << 32
            | u64::from(self.old_used.wrap) << 40;
        self.mem.store64(USED, word, Release);
    }
}

/// A position as the record holds it.
fn position(index: u16, wrap: u8, size: u16) -> Result<Position, RingError> {
    if index < size && wrap <= 1 {
        Ok(Position {
            index,
            wrap: wrap == 1,
        })
    } else {
        Err(RingError::Inflight("used index out of range"))
    }
}

/// Byte offset of an entry.
#[inline]
fn state(index: u16) -> usize {
    HEADER + usize::from(index) * STATE
}
