//! A table that one side publishes in generations and others fetch into: the protocol of the
//! IOTLB, apart from what the table holds so that loom can run it.

use crate::sync::{AtomicU64, Mutex, lock};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Fetches that a new generation overtakes are repeated this often. Each publisher waits for
/// the fetcher's acknowledgement, so one repetition is the usual case.
const ATTEMPTS: usize = 8;

/// The shared table and its generation.
pub(crate) struct Published<T> {
    generation: AtomicU64,
    /// Held for moments only, never while anything is waited for.
    table: Mutex<T>,
    /// Held while something is fetched: others that miss the same thing find it afterwards.
    fetching: Mutex<()>,
}

impl<T> Published<T> {
    pub(crate) fn new(table: T) -> Published<T> {
        Published {
            generation: AtomicU64::new(0),
            table: Mutex::new(table),
            fetching: Mutex::new(()),
        }
    }

    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Changes the table and starts a new generation: what was fetched before and is not in
    /// the table now is not used after this by anybody who has seen the new generation.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut T)) -> u64 {
        let mut table = lock(&self.table);
        change(&mut table);
        let generation = self.generation.load(Relaxed) + 1;
        self.generation.store(generation, Release);
        generation
    }

    /// Finds something in the table; failing that fetches it (with no lock of the table held)
    /// and inserts it, unless a new generation came meanwhile: then it starts again. `None`
    /// when generations came too fast.
    pub(crate) fn find_or_fetch<F, V, E>(
        &self,
        find: impl Fn(&T) -> Option<V>,
        mut fetch: impl FnMut() -> Result<F, E>,
        mut insert: impl FnMut(&mut T, F) -> Result<V, E>,
    ) -> Option<Result<V, E>> {
        if let Some(found) = find(&lock(&self.table)) {
            return Some(Ok(found));
        }
        let _fetching = lock(&self.fetching);
        for _ in 0..ATTEMPTS {
            let before = {
                let table = lock(&self.table);
                if let Some(found) = find(&table) {
                    return Some(Ok(found));
                }
                self.generation.load(Relaxed)
            };
            let fetched = fetch();
            let mut table = lock(&self.table);
            if self.generation.load(Relaxed) == before {
                return Some(fetched.and_then(|fetched| insert(&mut table, fetched)));
            }
        }
        None
    }
}
