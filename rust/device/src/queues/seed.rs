//! The task before it is on its thread.

use super::Queues;
use crate::backend::Local;
use crate::mailbox::{Completer, Mail, Mailbox};
use crate::slab::Slab;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use vduse_ring::Chain;
use vduse_worker::Place;

/// What the task is made of, on its way to its thread. Dropped there or not, nobody waits for
/// answers afterwards.
pub(crate) struct Seed {
    mailbox: Arc<Mailbox>,
    load: Arc<AtomicUsize>,
    has_grown: bool,
}

impl Seed {
    pub(crate) fn new(mailbox: Arc<Mailbox>, load: Arc<AtomicUsize>) -> Seed {
        Seed {
            mailbox,
            load,
            has_grown: false,
        }
    }

    /// The task, on its worker's thread.
    pub(crate) fn grow(mut self, place: Place) -> Queues {
        self.has_grown = true;
        let waker = place.waker();
        self.mailbox.set_bell(move || waker.wake());
        Queues {
            local: Local {
                spawner: place.spawner(),
                completer: Completer::new(self.mailbox.clone()),
                uring: RefCell::new(None),
            },
            place,
            mailbox: self.mailbox.clone(),
            has_mail: true,
            load: self.load.clone(),
            uring: None,
            has_to_retry: false,
            queues: Slab::new(),
            runs: 0,
            hot: Vec::new(),
            deadlines: BTreeSet::new(),
            has_worked: false,
            chain: Chain::default(),
            completions: Vec::new(),
            mail: Mail::default(),
        }
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if !self.has_grown {
            self.mailbox.close();
        }
    }
}
