//! What a virtqueue of a Python disk submits to: collects a batch, hands it over, collects what
//! has ended.

use super::batch::{Batch, Facts, Slot, Way};
use super::handler::Shared;
use crate::attachment;
use rustix::io::Errno;
use std::sync::{Arc, Weak};
use vduse_device::Completer;
use vduse_device::backend::{Completion, Engine, Op, Submitted, Token};

/// Operations of one batch at most: as many as its tokens can tell apart.
const MOST: usize = 1 << 15;

pub(super) struct PythonEngine {
    shared: Arc<Shared>,
    completer: Completer,
    facts: Vec<Facts>,
    slots: Vec<Slot>,
    /// Batches that were not completed when the handler returned.
    open: Vec<Weak<Batch>>,
}

impl PythonEngine {
    pub(super) fn new(shared: Arc<Shared>, completer: Completer) -> PythonEngine {
        PythonEngine {
            shared,
            completer,
            facts: Vec::new(),
            slots: Vec::new(),
            open: Vec::new(),
        }
    }
}

impl Engine for PythonEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        if self.facts.len() == MOST {
            self.flush();
        }
        let (facts, slot) = Slot::new(token, op);
        self.facts.push(facts);
        self.slots.push(slot);
        Submitted::Pending
    }

    fn flush(&mut self) {
        if self.facts.is_empty() {
            return;
        }
        let room = self.facts.len();
        let batch = Batch::new(
            self.shared.clone(),
            std::mem::replace(&mut self.facts, Vec::with_capacity(room)),
            std::mem::replace(&mut self.slots, Vec::with_capacity(room)),
            Way::Worker(self.completer.clone()),
        );
        self.shared.serve(&batch, attachment::keep);
        batch.returned();
        if batch.open() > 0 {
            self.open.retain(|batch| batch.strong_count() > 0);
            self.open.push(Arc::downgrade(&batch));
        }
    }

    fn cancel(&mut self, token: Token) {
        let mut index = 0;
        while index < self.slots.len() {
            if self.slots[index].token() != token {
                index += 1;
                continue;
            }
            self.facts.remove(index);
            self.slots.remove(index);
            self.completer.complete(Completion {
                token,
                result: Err(Errno::CANCELED),
                data: None,
            });
        }
        for batch in self.open.iter().filter_map(Weak::upgrade) {
            batch.cancel(token);
        }
    }
}
