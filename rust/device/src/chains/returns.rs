//! How completed chains come back to their queue's worker, from any thread.

use crate::backend::{Completion, Token};
use crate::mailbox::Completer;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A chain that its holder is done with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Return {
    pub(super) slot: u32,
    /// Bytes written to the chain's device-writable part.
    pub(super) written: u32,
    /// It was dropped without having been completed.
    pub(super) is_forgotten: bool,
}

#[derive(Default)]
struct List {
    returns: Vec<Return>,
    /// The worker looks by itself: it is inside the handler.
    is_watched: bool,
    /// A wake-up is on its way.
    is_woken: bool,
}

/// One queue run's box of completed chains.
pub(super) struct Returns {
    list: Mutex<List>,
    completer: Completer,
    /// Names the queue; all its chains come back under it.
    token: Token,
    /// The queue was given up.
    is_discarded: AtomicBool,
}

impl Returns {
    pub(super) fn new(completer: Completer, token: Token) -> Returns {
        Returns {
            list: Mutex::default(),
            completer,
            token,
            is_discarded: AtomicBool::new(false),
        }
    }

    /// Gives a chain back.
    pub(super) fn put(&self, returned: Return) {
        self.add(Some(returned));
    }

    /// Somebody has let go of a chain's memory: the end of the queue may be waiting for it.
    pub(super) fn released(&self) {
        // Either this sees the flag, or who has set it sees that the memory is gone.
        fence(Ordering::SeqCst);
        if self.is_discarded.load(Ordering::Relaxed) {
            self.add(None);
        }
    }

    /// On the worker: from now on it is told of released memory.
    pub(super) fn discard(&self) {
        self.is_discarded.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn add(&self, returned: Option<Return>) {
        {
            let mut list = self.lock();
            list.returns.extend(returned);
            if list.is_watched || std::mem::replace(&mut list.is_woken, true) {
                return;
            }
        }
        self.completer.complete(Completion {
            token: self.token,
            result: Ok(()),
            data: None,
        });
    }

    /// On the worker: from now until [`Returns::take`] nothing wakes it.
    pub(super) fn watch(&self) {
        self.lock().is_watched = true;
    }

    /// On the worker: moves all to `into`, which is empty and lends its memory.
    pub(super) fn take(&self, into: &mut Vec<Return>) {
        let mut list = self.lock();
        list.is_watched = false;
        list.is_woken = false;
        std::mem::swap(&mut list.returns, into);
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
