//! What a queue's owner keeps of it while it is on its worker.

use crate::backend::Token;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vduse_ring::QueueState;

const SLOT_BITS: u32 = 16;
const KEY_BITS: u32 = 24;
/// No raw id, which has at most 48 bits.
const NOT_STARTED: u64 = u64::MAX;

/// Names one run of one queue on its worker: a small key, and a count that tells its runs
/// apart, so that a completion for an abandoned request finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueId(u64);

impl QueueId {
    pub(crate) fn new(key: u32, run: u64) -> QueueId {
        let run = run << (SLOT_BITS + KEY_BITS) >> SLOT_BITS;
        QueueId(run | u64::from(key) & ((1 << KEY_BITS) - 1))
    }

    pub(crate) fn key(self) -> u32 {
        (self.0 & ((1 << KEY_BITS) - 1)) as u32
    }

    /// As epoll's user data; never more than 48 bits.
    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    pub(crate) fn from_raw(raw: u64) -> QueueId {
        QueueId(raw)
    }

    /// The name of the request in `slot`; a queue has at most 32768.
    pub(crate) fn token(self, slot: u32) -> Token {
        Token(self.0 << SLOT_BITS | u64::from(slot & 0xffff))
    }

    /// Which request of which queue.
    pub(crate) fn of(token: Token) -> (QueueId, u32) {
        (QueueId(token.0 >> SLOT_BITS), (token.0 & 0xffff) as u32)
    }
}

/// How a queue's run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Drained; where it stands.
    Stopped(QueueState),
    /// Given up: the device broke or was reset.
    Broken,
}

/// One run of one queue.
pub(crate) struct Handle {
    worker: usize,
    id: AtomicU64,
    draining: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
}

impl Handle {
    pub(crate) fn new(worker: usize) -> Handle {
        Handle {
            worker,
            id: AtomicU64::new(NOT_STARTED),
            draining: AtomicBool::new(false),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
        }
    }

    pub(crate) fn worker(&self) -> usize {
        self.worker
    }

    /// `None` until the worker has started it.
    pub(crate) fn id(&self) -> Option<QueueId> {
        let id = self.id.load(Ordering::Relaxed);
        (id != NOT_STARTED).then(|| QueueId::from_raw(id))
    }

    pub(crate) fn set_id(&self, id: QueueId) {
        self.id.store(id.raw(), Ordering::Relaxed);
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.id().is_some() && !self.draining.load(Ordering::Relaxed) && self.outcome().is_none()
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        *self.lock()
    }

    /// The first outcome stays.
    pub(crate) fn end(&self, outcome: Outcome) {
        self.lock().get_or_insert(outcome);
        self.ended.notify_all();
    }

    /// Waits for the outcome; `None` if there is none after `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Outcome> {
        let (outcome, _) = self
            .ended
            .wait_timeout_while(self.lock(), timeout, |outcome| outcome.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *outcome
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_queue_run_and_slot() {
        for (key, run, slot) in [(0, 0, 0), (1, 2, 3), ((1 << 24) - 1, (1 << 24) - 1, 32767)] {
            let id = QueueId::new(key, run);
            assert_eq!(QueueId::of(id.token(slot)), (id, slot));
            assert_eq!(id.key(), key);
            assert!(id.raw() < 1 << 48);
        }
        assert_ne!(QueueId::new(5, 1), QueueId::new(5, 2));
    }
}
