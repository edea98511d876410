//! All queues of one worker: its one task of the device side.
//!
//! Queues with work lately are *hot*: looked at every round, with kicks suppressed. The others
//! cost nothing until they are kicked.

mod commands;
mod completions;
mod end;
mod seed;

pub(crate) use seed::Seed;

use crate::backend::{Completion, Local, Uring};
use crate::command::Done;
use crate::handle::QueueId;
use crate::live::Stop;
use crate::mailbox::{Mail, Mailbox};
use crate::queue::{Look, Queue};
use crate::slab::Slab;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vduse_ring::Chain;
use vduse_worker::{Next, Place, Task, Turn};

/// Key of the io_uring's events; no queue's raw id.
const URING: u64 = u64::MAX;
/// Pause before what the kernel refused for want of memory is tried again.
const RETRY: Duration = Duration::from_millis(1);

/// The queues of one worker.
pub(crate) struct Queues {
    place: Place,
    mailbox: Arc<Mailbox>,
    /// Not looked for in the mailbox: kicks from before a command are seen before it.
    has_mail: bool,
    load: Arc<AtomicUsize>,
    local: Local,
    /// The same as `local.uring`, once it is watched.
    uring: Option<Rc<RefCell<Uring>>>,
    /// The kernel has not taken everything.
    has_to_retry: bool,
    queues: Slab<Box<Queue>>,
    runs: u64,
    hot: Vec<QueueId>,
    /// Of the queues' services.
    deadlines: BTreeSet<(Instant, QueueId)>,
    /// The last round had work.
    has_worked: bool,
    chain: Chain,
    completions: Vec<Completion>,
    mail: Mail,
}

impl Task for Queues {
    fn event(&mut self, key: u64) {
        if key != URING {
            let id = QueueId::from_raw(key);
            if let Some(queue) = self.queue(id) {
                queue.kicked();
            }
            self.make_hot(id);
        }
    }

    fn woken(&mut self) {
        self.has_mail = true;
    }

    fn run(&mut self) -> Turn {
        let mut worked = std::mem::take(&mut self.has_mail);
        if worked {
            self.read_mail();
        }
        worked |= self.collect();
        worked |= self.expire();
        let mut at = 0;
        while let Some(&id) = self.hot.get(at) {
            let (served, stays_hot) = self.serve(id);
            worked |= served;
            match stays_hot {
                true => at += 1,
                false => self.leave_hot(at),
            }
        }
        worked |= self.collect();
        self.has_worked = worked;
        match worked {
            true => Turn::Worked,
            false => Turn::Idle,
        }
    }

    /// Kicks of hot queues are suppressed, and the io_uring says in memory that it has news.
    fn needs_events(&self) -> bool {
        self.hot.len() < self.queues.len()
    }

    fn arm(&mut self) -> Next {
        let mut at = 0;
        while let Some(&id) = self.hot.get(at) {
            match self.arm_queue(id) {
                true => at += 1,
                false => self.leave_hot(at),
            }
        }
        let mut next = self.deadlines.first().map(|(at, _)| *at);
        if self.has_to_retry {
            let retry = Instant::now() + RETRY;
            next = Some(next.map_or(retry, |next| next.min(retry)));
        } else if self.has_uring_news() {
            return Next::Now;
        }
        match next {
            _ if !self.hot.is_empty() => Next::Now,
            Some(at) => Next::At(at),
            None => Next::Event,
        }
    }
}

impl Queues {
    fn queue(&mut self, id: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(id.key())?;
        (queue.id == id).then_some(queue)
    }

    fn make_hot(&mut self, id: QueueId) {
        if let Some(queue) = self.queue(id)
            && !std::mem::replace(&mut queue.is_hot, true)
        {
            queue.patience.renew();
            self.hot.push(id);
        }
    }

    /// Takes the queue at this place of the list off it.
    fn leave_hot(&mut self, at: usize) {
        let id = self.hot.swap_remove(at);
        if let Some(queue) = self.queue(id) {
            queue.is_hot = false;
        }
    }

    /// Looks at a hot queue, and takes one batch if there is something; whether there was, and
    /// whether it stays hot.
    fn serve(&mut self, id: QueueId) -> (bool, bool) {
        let others_work = self.has_worked;
        let Some(queue) = self.queue(id) else {
            return (false, false);
        };
        match queue.look() {
            Look::Never => {
                self.retire(id);
                return (false, false);
            }
            Look::Nothing => {
                let stays_hot = queue.patience.lasts(others_work);
                return (false, stays_hot || self.arm_queue(id));
            }
            Look::Work => queue.patience.renew(),
        }
        let mut chain = std::mem::take(&mut self.chain);
        let served = self.guarded(id, |queue| {
            let served = queue.turn(&mut chain)?;
            queue.publish()?;
            Ok(served)
        });
        self.chain = chain;
        self.retire(id);
        (served == Some(true), true)
    }

    /// Asks for kicks of a hot queue; whether it has work and stays hot.
    fn arm_queue(&mut self, id: QueueId) -> bool {
        if let Some(queue) = self.queue(id) {
            queue.patience.renew();
        }
        self.guarded(id, Queue::arm) == Some(true)
    }

    /// Lets a queue do something; what it throws ends its device alone.
    fn guarded<T>(
        &mut self,
        id: QueueId,
        what: impl FnOnce(&mut Queue) -> Result<T, Stop>,
    ) -> Option<T> {
        let queue = self.queue(id)?;
        if queue.device().is_broken() {
            queue.discard(None);
        }
        let result = catch_unwind(AssertUnwindSafe(|| {
            let value = what(queue)?;
            Ok((value, queue.service_deadline()))
        }));
        let stop = match result {
            Ok(Ok((value, deadline))) => {
                self.note_deadline(id, deadline);
                return Some(value);
            }
            Ok(Err(stop)) => stop,
            Err(_) => Stop::Panic,
        };
        queue.stop(stop);
        let device = queue.device().id;
        self.discard(device, None);
        None
    }

    /// Keeps when a queue's service wants to be called.
    fn note_deadline(&mut self, id: QueueId, deadline: Option<Instant>) {
        let Some(queue) = self.queue(id) else {
            return;
        };
        let before = std::mem::replace(&mut queue.deadline, deadline);
        if before != deadline {
            before.map(|at| self.deadlines.remove(&(at, id)));
            deadline.map(|at| self.deadlines.insert((at, id)));
        }
    }

    /// Gives up all queues of a device; `done` is dropped when the last has ended.
    fn discard(&mut self, device: u64, done: Option<&Done>) {
        let mut ids = Vec::new();
        for (_, queue) in self.queues.iter_mut() {
            if queue.device().id == device {
                ids.push((queue.id, queue.discard(done.cloned())));
            }
        }
        for (id, deadline) in ids {
            self.note_deadline(id, deadline);
            self.retire(id);
        }
    }

    /// Lets go of what serves a queue that is paused, and of a queue that has ended, once nothing
    /// is in flight.
    fn retire(&mut self, id: QueueId) {
        if self.queue(id).is_some_and(Queue::rest) {
            self.note_deadline(id, None);
        }
        if !self.queue(id).is_some_and(Queue::is_over) {
            return;
        }
        if let Some(queue) = self.queues.remove(id.key()) {
            // Closing the fd is not enough: its other owners keep it in the epoll.
            self.place.unwatch(queue.kick_fd());
            queue.deadline.map(|at| self.deadlines.remove(&(at, id)));
            self.load.fetch_sub(1, Ordering::Relaxed);
            // A panic in a backend's end is nobody else's.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(queue)));
        }
    }
}
