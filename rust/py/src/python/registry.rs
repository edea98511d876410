//! Batches by the numbers in their tokens.

use super::batch::Batch;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Bits of a token that are the operation's place in its batch: a batch has at most 128
/// requests of at most 16 ranges.
pub(super) const INDEX_BITS: u32 = 16;

enum Entry {
    /// Lives as long as its objects.
    Known(Weak<Batch>),
    /// Lives until it is completed.
    Kept(Arc<Batch>),
}

/// A token's place in its batch.
pub(super) fn index(token: u64) -> usize {
    (token & ((1 << INDEX_BITS) - 1)) as usize
}

/// The batches of one backend whose tokens are in Python's hands.
#[derive(Default)]
pub(super) struct Registry(Mutex<HashMap<u64, Entry>>);

impl Registry {
    pub(super) fn token(&self, number: u64, index: usize) -> u64 {
        number << INDEX_BITS | index as u64
    }

    pub(super) fn add(&self, batch: &Arc<Batch>, keep: bool) {
        let entry = match keep {
            true => Entry::Kept(batch.clone()),
            false => Entry::Known(Arc::downgrade(batch)),
        };
        let replaced = self.lock().insert(batch.number, entry);
        // Not under the lock: a batch's end removes it here.
        drop(replaced);
    }

    pub(super) fn remove(&self, number: u64) {
        let removed = self.lock().remove(&number);
        drop(removed);
    }

    /// The batch that a token names.
    pub(super) fn find(&self, token: u64) -> Option<Arc<Batch>> {
        match self.lock().get(&(token >> INDEX_BITS))? {
            Entry::Known(batch) => batch.upgrade(),
            Entry::Kept(batch) => Some(batch.clone()),
        }
    }

    /// Forgets all; what was kept ends with its last object.
    pub(super) fn clear(&self) {
        let entries = std::mem::take(&mut *self.lock());
        drop(entries);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
