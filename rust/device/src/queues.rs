//! All queues of one worker: its one task of the device side.
//!
//! Queues with work lately are *hot*: looked at every round, with kicks suppressed. The others
//! cost nothing until they are kicked.

use crate::backend::{Completion, Local, Uring};
use crate::command::{Command, Done};
use crate::datapath::StartError;
use crate::handle::QueueId;
use crate::live::Stop;
use crate::mailbox::{Completer, Mail, Mailbox};
use crate::queue::{Look, NewQueue, Queue};
use crate::slab::Slab;
use rustix::event::Timespec;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vduse_ring::Chain;
use vduse_worker::{Next, Place, Task, Turn};

/// Key of the io_uring's events; no queue's raw id.
const URING: u64 = u64::MAX;
/// How often a queue is looked at in vain, while others have work, before kicks are asked for:
/// looking has cost about as much then as the kick that it saves.
const PATIENCE: u32 = 64;
/// Pause before what the kernel refused for want of memory is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// Turns that the end waits for the io_uring to empty, each as long as [`RETRY`].
const LAST_TURNS: usize = 1000;

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
            place,
            local: Local {
                completer: Completer::new(self.mailbox.clone()),
                uring: RefCell::new(None),
            },
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
    fn read_mail(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        self.mailbox.take(&mut mail);
        self.completions.append(&mut mail.completions);
        if std::mem::take(&mut mail.has_new_deadlines) {
            let ids: Vec<QueueId> = self.queues.iter().map(|(_, queue)| queue.id).collect();
            for id in ids {
                // Notes its deadline, as after everything it does.
                self.guarded(id, |_| Ok(()));
            }
        }
        for command in mail.commands.drain(..) {
            // A panic in a backend's `attach` leaves its caller without an answer, no more.
            let _ = catch_unwind(AssertUnwindSafe(|| self.obey(command)));
        }
        self.mail = mail;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { queue, reply } => {
                // Nobody waits for the answer only if the caller's thread is gone.
                let _ = reply.send(self.start(*queue));
            }
            Command::Drain { id } => {
                self.guarded(id, |queue| {
                    queue.drain();
                    Ok(())
                });
                self.make_hot(id);
            }
            Command::SetIrq { id, irq, done } => {
                if let Some(queue) = self.queue(id) {
                    queue.set_irq(irq);
                }
                drop(done);
            }
            Command::Refresh { device, done } => {
                self.refresh(device);
                drop(done);
            }
            Command::Discard { device, done } => self.discard(device, done.as_ref()),
        }
    }

    fn start(&mut self, new: NewQueue) -> Result<QueueId, StartError> {
        self.runs += 1;
        let id = QueueId::new(self.queues.next_key(), self.runs);
        let service = new.attach(id, &self.local)?;
        self.watch_uring()?;
        self.place
            .watch(new.kick.as_fd(), id.raw(), false)
            .map_err(|errno| StartError::System("kick fd", errno))?;
        self.queues.insert(Box::new(Queue::new(id, new, service)));
        self.load.fetch_add(1, Ordering::Relaxed);
        // Kicks may have been lost: a new queue looks at its ring at once.
        self.make_hot(id);
        Ok(id)
    }

    /// Starts to watch the io_uring once an engine has asked for it.
    fn watch_uring(&mut self) -> Result<(), StartError> {
        if self.uring.is_none()
            && let Some(uring) = &*self.local.uring.borrow()
        {
            self.place
                .watch(uring.borrow().event_fd(), URING, false)
                .map_err(|errno| StartError::System("io_uring", errno))?;
            self.uring = Some(uring.clone());
        }
        Ok(())
    }

    fn queue(&mut self, id: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(id.key())?;
        (queue.id == id).then_some(queue)
    }

    fn make_hot(&mut self, id: QueueId) {
        if let Some(queue) = self.queue(id)
            && !std::mem::replace(&mut queue.is_hot, true)
        {
            queue.vain = 0;
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
            Look::Never => return (false, false),
            Look::Nothing => {
                queue.vain += u32::from(others_work);
                let is_patient = queue.vain < PATIENCE;
                return (false, is_patient || self.arm_queue(id));
            }
            Look::Work => queue.vain = 0,
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
            queue.vain = 0;
        }
        self.guarded(id, Queue::arm) == Some(true)
    }

    /// The queues of a device let go of the generation they have looked at. They ask for kicks
    /// first: an unused ring need not be mapped, so nobody looks for it before it is used.
    fn refresh(&mut self, device: u64) {
        let of_device = |(_, queue): &(u32, &mut Box<Queue>)| queue.device.id == device;
        let queues = self.queues.iter_mut().filter(of_device);
        let ids: Vec<QueueId> = queues.map(|(_, queue)| queue.id).collect();
        for id in ids {
            let is_hot = self.queue(id).is_some_and(|queue| queue.is_hot);
            let has_work = is_hot && self.arm_queue(id);
            if is_hot && !has_work {
                self.hot.retain(|&hot| hot != id);
            }
            if let Some(queue) = self.queue(id) {
                queue.is_hot = has_work;
                queue.acknowledge(has_work);
            }
        }
    }

    /// Collects what has ended in the io_uring and delivers all completions; whether there were
    /// any.
    fn collect(&mut self) -> bool {
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

    fn has_uring_news(&self) -> bool {
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
    fn expire(&mut self) -> bool {
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

    /// Lets a queue do something; what it throws ends its device alone.
    fn guarded<T>(
        &mut self,
        id: QueueId,
        what: impl FnOnce(&mut Queue) -> Result<T, Stop>,
    ) -> Option<T> {
        let queue = self.queue(id)?;
        if queue.device.is_broken() {
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
        let device = queue.device.id;
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
            if queue.device.id == device {
                ids.push((queue.id, queue.discard(done.cloned())));
            }
        }
        for (id, deadline) in ids {
            self.note_deadline(id, deadline);
            self.retire(id);
        }
    }

    /// Lets go of a queue that has ended.
    fn retire(&mut self, id: QueueId) {
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

    /// Waits for completions, a moment.
    fn nap(&self) {
        let Some(uring) = &self.uring else {
            return std::thread::sleep(RETRY);
        };
        let uring = uring.borrow();
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            uring.event_fd(),
            rustix::event::PollFlags::IN,
        )];
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: RETRY.subsec_nanos().into(),
        };
        // Whatever comes of it, there is another turn.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
        let _ = rustix::io::read(uring.event_fd(), &mut [0; 8]);
    }
}

impl Drop for Queues {
    /// Gives up all queues and lets the io_uring empty itself, within bounds.
    fn drop(&mut self) {
        let devices: Vec<u64> = self
            .queues
            .iter()
            .map(|(_, queue)| queue.device.id)
            .collect();
        for device in devices {
            self.discard(device, None);
        }
        for _ in 0..LAST_TURNS {
            if self.queues.is_empty() {
                break;
            }
            self.nap();
            self.read_mail();
            self.collect();
            self.expire();
        }
        self.mailbox.close();
    }
}
