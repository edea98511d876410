//! Use counts of bounce chunks, and who may free their pages.
//!
//! A chunk is idle (0), in use by that many mappings, or claimed by reclaim. Mapping and
//! reclaiming exclude each other without a lock: a mapping waits for the claim of its own chunk
//! to end (one punched hole, microseconds), and only an idle chunk can be claimed. Checked
//! over all interleavings by loom (tools/loom).

#[cfg(all(test, loom))]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(all(test, loom)))]
use std::sync::atomic::{AtomicU32, Ordering};

use std::ops::RangeInclusive;
use std::thread::yield_now;

/// Bytes of a chunk.
pub(super) const CHUNK: usize = 256 << 10;

const CLAIMED: u32 = u32::MAX;

/// On a cache line of its own: queues map in neighbouring chunks.
#[derive(Debug)]
#[repr(align(64))]
struct Count(AtomicU32);

/// The counts of one domain's chunks.
#[derive(Debug)]
pub(super) struct Chunks {
    counts: Box<[Count]>,
}

/// An idle chunk that nobody can map until this is dropped.
#[derive(Debug)]
pub(super) struct Claim<'a>(&'a AtomicU32);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

/// One more user, unless the chunk is claimed.
fn try_acquire(count: &AtomicU32) -> bool {
    let mut now = count.load(Ordering::Relaxed);
    while now != CLAIMED {
        // Acquire: what the last claim did to the pages is done.
        match count.compare_exchange_weak(now, now + 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(other) => now = other,
        }
    }
    false
}

impl Chunks {
    /// As many idle chunks.
    pub(super) fn new(chunks: usize) -> Chunks {
        Chunks {
            counts: (0..chunks).map(|_| Count(AtomicU32::new(0))).collect(),
        }
    }

    /// Number of chunks.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }

    /// One more user of each of `chunks`.
    pub(super) fn acquire(&self, chunks: RangeInclusive<usize>) {
        for Count(count) in &self.counts[chunks] {
            while !try_acquire(count) {
                yield_now();
            }
        }
    }

    /// One user of each of `chunks` less.
    pub(super) fn release(&self, chunks: RangeInclusive<usize>) {
        for Count(count) in &self.counts[chunks] {
            // Release: the last use of the pages is over before a claim can succeed.
            count.fetch_sub(1, Ordering::Release);
        }
    }

    /// Claims a chunk if it is idle.
    pub(super) fn claim(&self, chunk: usize) -> Option<Claim<'_>> {
        let count = &self.counts[chunk].0;
        count
            .compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| Claim(count))
    }

    /// Whether any mapping uses the chunk.
    pub(super) fn in_use(&self, chunk: usize) -> bool {
        !matches!(self.counts[chunk].0.load(Ordering::Acquire), 0 | CLAIMED)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_an_idle_chunk_can_be_claimed() {
        let chunks = Chunks::new(2);
        chunks.acquire(0..=1);
        chunks.acquire(1..=1);
        assert!(chunks.claim(1).is_none());
        chunks.release(0..=1);
        assert!(chunks.claim(0).is_some() && chunks.claim(1).is_none());
        assert!(chunks.in_use(1));
        chunks.release(1..=1);
        assert!(chunks.claim(1).is_some());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    struct Shared {
        chunks: Chunks,
        /// Stands for the pages of chunk 0 (two mappings use two halves of it).
        pages: [UnsafeCell<u32>; 2],
    }

    // SAFETY: the pages are what the model checks: loom reports unsynchronised access.
    unsafe impl Sync for Shared {}

    fn map_use_unmap(shared: &Shared, half: usize) {
        // One try: another one after a claim is one that starts later.
        if !try_acquire(&shared.chunks.counts[0].0) {
            return;
        }
        // SAFETY: loom checks the access.
        shared.pages[half].with_mut(|page| unsafe { *page = 7 });
        // SAFETY: loom checks the access.
        shared.pages[half].with(|page| assert_eq!(unsafe { *page }, 7, "reclaimed while live"));
        shared.chunks.release(0..=0);
    }

    #[test]
    fn loom_reclaim_never_touches_a_mapped_chunk() {
        loom::model(|| {
            let shared = Arc::new(Shared {
                chunks: Chunks::new(1),
                pages: [UnsafeCell::new(0), UnsafeCell::new(0)],
            });
            let mappers: Vec<_> = (0..2)
                .map(|half| {
                    let shared = Arc::clone(&shared);
                    loom::thread::spawn(move || map_use_unmap(&shared, half))
                })
                .collect();
            if let Some(_claim) = shared.chunks.claim(0) {
                for page in &shared.pages {
                    // SAFETY: loom checks the access.
                    page.with_mut(|page| unsafe { *page = 0 });
                }
            }
            for mapper in mappers {
                mapper.join().unwrap();
            }
            assert!(shared.chunks.claim(0).is_some());
        });
    }
}
