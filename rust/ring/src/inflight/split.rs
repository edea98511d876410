//! `QueueRegionSplit` and `DescStateSplit`.
//!
//! A crash is the death of this thread between two stores, so program order is what counts;
//! Release keeps the compiler to it.

use super::{RingError, is_written, mark_written};
use crate::bits::Bits;
use crate::shared::Shared;
use std::sync::atomic::Ordering::{Relaxed, Release};
use vduse_mem::Pinned;

const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const HEADER: usize = 16;

/// Offsets in `DescStateSplit`, and its size.
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;
const STATE: usize = 16;

/// The record of one split queue.
pub(crate) struct SplitRecord {
    mem: Shared,
    counter: u64,
    last_batch_head: u16,
}

impl SplitRecord {
    /// Bytes of a record for `size` descriptors.
    pub(crate) fn bytes(size: u16) -> u64 {
        (HEADER + STATE * usize::from(size)) as u64
    }

    /// Opens the record of a queue whose used.idx is `used_idx`. For one that was written
    /// before: the heads in flight, oldest first.
    pub(crate) fn open(
        at: Pinned,
        size: u16,
        used_idx: u16,
    ) -> Result<(SplitRecord, Option<Vec<u16>>), RingError> {
        let mem = Shared::new(at, SplitRecord::bytes(size), 8)
            .ok_or(RingError::Inflight("too short or unaligned"))?;
        let mut record = SplitRecord {
            mem,
            counter: 0,
            last_batch_head: 0,
        };
        let open = if is_written(&record.mem, size)? {
            Some(record.recover(size, used_idx)?)
        } else {
            for offset in (HEADER..SplitRecord::bytes(size) as usize).step_by(8) {
                record.mem.store64(offset, 0, Relaxed);
            }
            record.mem.store16(LAST_BATCH_HEAD, 0, Relaxed);
            record.mem.store16(USED_IDX, used_idx, Relaxed);
            mark_written(&record.mem, size);
            None
        };
        Ok((record, open))
    }

    fn recover(&mut self, size: u16, used_idx: u16) -> Result<Vec<u16>, RingError> {
        self.last_batch_head = self.mem.load16(LAST_BATCH_HEAD, Relaxed);
        let batch = used_idx.wrapping_sub(self.mem.load16(USED_IDX, Relaxed));
        if batch > size {
            return Err(RingError::Inflight("last batch is longer than the queue"));
        }
        // The last batch was published, but perhaps not yet taken off the record.
        let mut published = Bits::new(size.into());
        let mut head = self.last_batch_head;
        for _ in 0..batch {
            if head >= size {
                return Err(RingError::Inflight("index out of range"));
            }
            if !published.insert(head) {
                return Err(RingError::Inflight("last batch loops"));
            }
            head = self.mem.load16(state(head) + NEXT, Relaxed);
        }
        let mut open = Vec::new();
        for head in 0..size {
            if published.contains(head) {
                self.mem.store8(state(head) + INFLIGHT, 0, Release);
            } else if self.mem.load8(state(head) + INFLIGHT, Relaxed) != 0 {
                open.push((self.mem.load64(state(head) + COUNTER, Relaxed), head));
            }
        }
        self.mem.store16(USED_IDX, used_idx, Release);
        open.sort_unstable();
        self.counter = open
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(open.into_iter().map(|(_, head)| head).collect())
    }

    /// The request at `head` was taken from the avail ring.
    #[inline]
    pub(crate) fn take(&mut self, head: u16) {
        self.mem
            .store64(state(head) + COUNTER, self.counter, Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.mem.store8(state(head) + INFLIGHT, 1, Release);
    }

    /// The request at `head` joins the batch that is published next.
    #[inline]
    pub(crate) fn stage(&mut self, head: u16) {
        self.mem
            .store16(state(head) + NEXT, self.last_batch_head, Relaxed);
        self.last_batch_head = head;
        self.mem.store16(LAST_BATCH_HEAD, head, Release);
    }

    /// The batch `heads` is in the used ring, whose index is now `used_idx`.
    #[inline]
    pub(crate) fn published(&mut self, heads: &[u16], used_idx: u16) {
        for &head in heads {
            self.mem.store8(state(head) + INFLIGHT, 0, Release);
        }
        self.mem.store16(USED_IDX, used_idx, Release);
    }
}

/// Byte offset of a head's state.
#[inline]
fn state(head: u16) -> usize {
    HEADER + usize::from(head) * STATE
}
