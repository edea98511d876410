//! Waiting for address space without missing a wake-up, at no cost while nobody waits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Where drivers wait until something is unmapped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiters: AtomicU32,
    unmaps: Mutex<u64>,
    changed: Condvar,
}

impl Room {
    /// As [`crate::Dma::wait_room`].
    pub(crate) fn wait(&self, timeout: Duration, retry: &mut dyn FnMut() -> bool) {
        // Counted before the retry: whoever unmaps after the retry has looked sees a waiter,
        // because both take the allocator's locks in between.
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let seen = *self.unmaps.lock().unwrap_or_else(PoisonError::into_inner);
        if !retry() {
            let unmaps = self.unmaps.lock().unwrap_or_else(PoisonError::into_inner);
            drop(
                self.changed
                    .wait_timeout_while(unmaps, timeout, |unmaps| *unmaps == seen),
            );
        }
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// Something was given back to the allocator.
    #[inline]
    pub(crate) fn announce(&self) {
        if self.waiters.load(Ordering::SeqCst) != 0 {
            *self.unmaps.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            self.changed.notify_all();
        }
    }
}
