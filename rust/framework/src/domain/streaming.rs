//! Addresses of streaming mappings.
//!
//! Several queues map and unmap at some million times a second, mostly the same few sizes: each
//! thread has a shard with free lists by size (last in, first out: the pages are still in the
//! CPU's cache), and only what a shard lacks comes from the common ranges. When those are
//! exhausted, every shard gives back what it holds, so that a refusal is always true.

use super::range::Ranges;
use crate::thread::thread_index;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a granule: the streaming allocator's unit, one page.
pub(super) const GRANULE: usize = 4096;

/// Requests below this many granules are rounded up to a power of two.
const ROUNDED_BELOW: u32 = 32;

/// Sizes with a free list: 1, 2, 4, 8, 16, 32 granules.
const CLASSES: usize = 6;

/// Most ranges on one free list: enough for a queue of 128 requests in flight.
const CACHED: usize = 128;

/// Shards; threads beyond this many share them.
pub(super) const SHARDS: usize = 8;

/// The shard of the calling thread.
pub(super) fn shard() -> usize {
    thread_index() % SHARDS
}

/// Granules that a mapping of `bytes` takes.
pub(super) fn granules(bytes: usize) -> u32 {
    let granules = bytes.div_ceil(GRANULE) as u32;
    if granules < ROUNDED_BELOW {
        granules.next_power_of_two()
    } else {
        granules
    }
}

fn class(granules: u32) -> Option<usize> {
    (granules.is_power_of_two() && granules <= ROUNDED_BELOW)
        .then(|| granules.trailing_zeros() as usize)
}

/// On cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Lists>);

#[derive(Debug, Default)]
struct Lists {
    free: [Vec<u32>; CLASSES],
    /// Granules taken less granules given by this shard's threads; only the sum over all
    /// shards means anything.
    balance: i64,
    takes: u64,
}

/// The allocator.
#[derive(Debug)]
pub(super) struct Streaming {
    shards: [Shard; SHARDS],
    ranges: Mutex<Ranges>,
}

impl Streaming {
    /// Granule 0 is never used: IOVA 0 is no address.
    pub(super) fn new(granules: u32) -> Streaming {
        Streaming {
            shards: Default::default(),
            ranges: Mutex::new(Ranges::new(1, granules)),
        }
    }

    fn lists(&self, shard: usize) -> MutexGuard<'_, Lists> {
        self.shards[shard]
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first granule of `granules` ones.
    pub(super) fn take(&self, shard: usize, granules: u32) -> Option<u32> {
        let cached = class(granules).and_then(|class| {
            let mut lists = self.lists(shard);
            let start = lists.free[class].pop()?;
            lists.took(granules);
            Some(start)
        });
        if cached.is_some() {
            return cached;
        }
        // No guard is held from one statement to the next: a shard gives back under its own.
        let mut start = self.ranges().take(granules);
        if start.is_none() {
            self.flush();
            start = self.ranges().take(granules);
        }
        if start.is_some() {
            self.lists(shard).took(granules);
        }
        start
    }

    /// Gives back what [`Streaming::take`] gave, by any thread.
    pub(super) fn give(&self, shard: usize, start: u32, granules: u32) {
        let mut lists = self.lists(shard);
        lists.balance -= i64::from(granules);
        if let Some(class) = class(granules)
            && lists.free[class].len() < CACHED
        {
            lists.free[class].push(start);
            return;
        }
        drop(lists);
        self.ranges().give(start, granules);
    }

    /// Every shard gives back what it holds.
    fn flush(&self) {
        for shard in 0..SHARDS {
            let mut lists = self.lists(shard);
            let mut ranges = self.ranges();
            for class in 0..CLASSES {
                for start in lists.free[class].drain(..) {
                    ranges.give(start, 1 << class);
                }
            }
        }
    }

    /// Granules taken now, and takes so far.
    pub(super) fn totals(&self) -> (u64, u64) {
        let (mut balance, mut takes) = (0, 0);
        for shard in 0..SHARDS {
            let lists = self.lists(shard);
            balance += lists.balance;
            takes += lists.takes;
        }
        // Shards are read one after the other while others map: the sum may be off for a moment.
        (u64::try_from(balance).unwrap_or(0), takes)
    }
}

impl Lists {
    fn took(&mut self, granules: u32) {
        self.balance += i64::from(granules);
        self.takes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_below_32_granules_are_rounded_up_to_a_power_of_two() {
        let sizes = [1, 4096, 4097, 3 * 4096, 17 * 4096, 31 * 4096, 33 * 4096];
        assert_eq!(sizes.map(granules), [1, 1, 2, 4, 32, 32, 33]);
    }

    #[test]
    fn granule_0_is_never_used() {
        let streaming = Streaming::new(4);
        let mut taken: Vec<_> = std::iter::from_fn(|| streaming.take(0, 1)).collect();
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 3]);
    }

    #[test]
    fn a_refusal_is_true_whatever_other_shards_hold_back() {
        let streaming = Streaming::new(33);
        let taken: Vec<_> = (0..32).map(|_| streaming.take(1, 1).unwrap()).collect();
        assert_eq!(streaming.take(0, 32), None);
        for start in taken {
            streaming.give(1, start, 1);
        }
        assert_eq!(streaming.take(0, 32), Some(1));
        assert_eq!(streaming.totals(), (32, 33));
    }
}
