//! What has ended at the engines, on its way back to the queues.

use super::Queues;
use crate::backend::Completion;
use crate::handle::QueueId;
use crate::queue::Queue;
use std::time::Instant;

impl Queues {
    /// Collects what has ended in the io_uring and delivers all completions; whether there were
    /// any.
    pub(super) fn collect(&mut self) -> bool {
        self.has_to_retry = false;
        if self.has_uring_news()
            && let Some(uring) = &self.uring
        {
            self.has_to_retry = uring.borrow_mut().turn(&mut self.completions);
        }
        let mut completions = std::mem::take(&mut self.completions);
        let found = !completions.is_empty();
        self.deliver(&mut completions, true);
        self.completions = completions;
        found
    }

    pub(super) fn has_uring_news(&self) -> bool {
        let uring = self.uring.as_ref();
        uring.is_some_and(|uring| uring.borrow_mut().has_news())
    }

    /// Gives completions to their queues; each publishes once. `are_new`: their engines have
    /// not seen them.
    fn deliver(&mut self, completions: &mut Vec<Completion>, are_new: bool) {
        let mut touched: Vec<QueueId> = Vec::new();
        for mut completion in completions.drain(..) {
            let (id, slot) = QueueId::of(completion.token);
            self.guarded(id, |queue| {
                if are_new {
                    queue.completed(&mut completion);
                }
                queue.deliver(slot, completion)
            });
            if touched.last() != Some(&id) && !touched.contains(&id) {
                touched.push(id);
            }
        }
        for id in touched {
            self.guarded(id, Queue::publish);
            self.retire(id);
            // Its driver will probably send the next request soon.
            self.make_hot(id);
        }
    }

    /// Lets engines go on whose deadline has passed; whether there were any.
    pub(super) fn expire(&mut self) -> bool {
        if self.deadlines.is_empty() {
            return false;
        }
        let now = Instant::now();
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        let due: Vec<QueueId> = due.map(|(_, id)| *id).collect();
        for &id in &due {
            let mut ended = Vec::new();
            self.guarded(id, |queue| {
                queue.expire(now, &mut ended);
                Ok(())
            });
            self.deliver(&mut ended, false);
        }
        !due.is_empty()
    }
}
