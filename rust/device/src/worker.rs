//! A worker thread: one epoll for its letter box, its io_uring and the kick fds of its queues.
//! It sleeps without a timeout when nothing is to be done, but where work has lately come soon
//! it looks again for a moment first.
//!
//! Kick fds are watched for edges and never read: every kick is an edge, nothing that the
//! driver does to the fd can block a read, and a kick costs no second system call.

use crate::backend::{Completion, Local, Uring};
use crate::datapath::StartError;
use crate::handle::QueueId;
use crate::irq::Irq;
use crate::live::Stop;
use crate::mailbox::{Completer, Mail, Mailbox};
use crate::queue::{NewQueue, Queue, Turn};
use crate::slab::Slab;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, SyncSender};
use vduse_ring::{Chain, Spin};

/// Dropped when what was asked for is done.
pub(crate) type Done = Sender<()>;

/// What a worker is told.
pub(crate) enum Command {
    /// Serve this queue.
    Start {
        queue: Box<NewQueue>,
        reply: SyncSender<Result<QueueId, StartError>>,
    },
    /// Take nothing more; the queue's handle hears of the end.
    Drain { id: QueueId },
    /// Irqs of this queue go another way.
    SetIrq { id: QueueId, irq: Irq, done: Done },
    /// The device's IOTLB has a new generation.
    Refresh { device: u64, done: Done },
    /// Give the device's queues up.
    Discard { device: u64, done: Option<Done> },
    /// End the thread.
    Quit,
}

const WAKE: u64 = u64::MAX;
const URING: u64 = u64::MAX - 1;
/// Events fetched at once.
const EVENTS: usize = 64;
/// Pause before what the kernel refused for want of memory is tried again.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
/// Turns that the end waits for the io_uring to empty, each as long as [`RETRY`].
const LAST_TURNS: usize = 1000;

/// What a worker is made of, on its way to its thread.
pub(crate) struct Seed {
    mailbox: Arc<Mailbox>,
    load: Arc<AtomicUsize>,
    epoll: OwnedFd,
}

impl Seed {
    pub(crate) fn new(mailbox: Arc<Mailbox>, load: Arc<AtomicUsize>) -> Result<Seed, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            mailbox.wake_fd(),
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        Ok(Seed {
            mailbox,
            load,
            epoll,
        })
    }

    /// Serves until told to quit.
    pub(crate) fn run(self) {
        let local = Local {
            completer: Completer::new(self.mailbox.clone()),
            uring: RefCell::new(None),
        };
        let mut worker = Worker {
            mailbox: self.mailbox,
            load: self.load,
            epoll: self.epoll,
            local,
            uring: None,
            queues: Slab::new(),
            runs: 0,
            ready: VecDeque::new(),
            chain: Chain::default(),
            completions: Vec::new(),
            mail: Mail::default(),
            spin: Spin::default(),
            is_quitting: false,
        };
        worker.run();
    }
}

struct Worker {
    mailbox: Arc<Mailbox>,
    load: Arc<AtomicUsize>,
    epoll: OwnedFd,
    local: Local,
    /// The same as `local.uring`, once it is watched.
    uring: Option<Rc<RefCell<Uring>>>,
    queues: Slab<Box<Queue>>,
    runs: u64,
    ready: VecDeque<QueueId>,
    chain: Chain,
    completions: Vec<Completion>,
    mail: Mail,
    spin: Spin,
    is_quitting: bool,
}

impl Worker {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let mut retry = false;
        while !self.is_quitting {
            let timeout = if !self.ready.is_empty() {
                Some(Timespec::default())
            } else if retry {
                Some(RETRY)
            } else {
                None
            };
            self.wait(&mut events, timeout.as_ref());
            retry = self.turn_uring();
            self.deliver();
            for _ in 0..self.ready.len() {
                if let Some(id) = self.ready.pop_front() {
                    self.serve(id);
                }
            }
            retry |= self.turn_uring();
            self.deliver();
        }
        self.end();
    }

    /// Waits until something happens, and notes what.
    fn wait(&mut self, events: &mut Vec<epoll::Event>, timeout: Option<&Timespec>) {
        events.clear();
        // An error is EINTR: nothing happened.
        let mut fetch = |timeout: Option<&Timespec>| {
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout) != Ok(0)
        };
        match timeout {
            Some(_) => drop(fetch(timeout)),
            None => self.spin.wait(|may_sleep| match may_sleep {
                true => fetch(None),
                false => fetch(Some(&Timespec::default())),
            }),
        }
        for event in events.drain(..) {
            match event.data.u64() {
                WAKE => self.read_mail(),
                URING => {}
                id => {
                    let id = QueueId::from_raw(id);
                    if let Some(queue) = self.queue(id) {
                        queue.kicked();
                    }
                    self.make_ready(id);
                }
            }
        }
    }

    fn read_mail(&mut self) {
        let mut mail = std::mem::take(&mut self.mail);
        self.mailbox.take(&mut mail);
        self.completions.append(&mut mail.completions);
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
                if let Some(queue) = self.queue(id) {
                    queue.drain();
                    self.make_ready(id);
                }
            }
            Command::SetIrq { id, irq, done } => {
                if let Some(queue) = self.queue(id) {
                    queue.set_irq(irq);
                }
                drop(done);
            }
            Command::Refresh { device, done } => {
                for (_, queue) in self.queues.iter_mut() {
                    if queue.device.id == device {
                        queue.acknowledge();
                    }
                }
                drop(done);
            }
            Command::Discard { device, done } => self.discard(device, done.as_ref()),
            Command::Quit => self.is_quitting = true,
        }
    }

    fn start(&mut self, new: NewQueue) -> Result<QueueId, StartError> {
        self.runs += 1;
        let id = QueueId::new(self.queues.next_key(), self.runs);
        let service = new.attach(id, &self.local)?;
        self.watch_uring()?;
        epoll::add(
            &self.epoll,
            &new.kick,
            epoll::EventData::new_u64(id.raw()),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )
        .map_err(|errno| StartError::System("kick fd", errno))?;
        self.queues.insert(Box::new(Queue::new(id, new, service)));
        self.load.fetch_add(1, Ordering::Relaxed);
        // Kicks may have been lost: look at the ring at once.
        self.make_ready(id);
        Ok(id)
    }

    /// Starts to watch the io_uring once an engine has asked for it.
    fn watch_uring(&mut self) -> Result<(), StartError> {
        if self.uring.is_none()
            && let Some(uring) = &*self.local.uring.borrow()
        {
            epoll::add(
                &self.epoll,
                uring.borrow().event_fd(),
                epoll::EventData::new_u64(URING),
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            )
            .map_err(|errno| StartError::System("io_uring", errno))?;
            self.uring = Some(uring.clone());
        }
        Ok(())
    }

    fn queue(&mut self, id: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(id.key())?;
        (queue.id == id).then_some(queue)
    }

    fn make_ready(&mut self, id: QueueId) {
        if let Some(queue) = self.queue(id)
            && !std::mem::replace(&mut queue.is_queued, true)
        {
            self.ready.push_back(id);
        }
    }

    /// One batch of one queue.
    fn serve(&mut self, id: QueueId) {
        let mut chain = std::mem::take(&mut self.chain);
        if let Some(queue) = self.queue(id) {
            queue.is_queued = false;
        }
        let turn = self.guarded(id, |queue| {
            let turn = queue.turn(&mut chain)?;
            queue.publish()?;
            Ok(turn)
        });
        self.chain = chain;
        if turn == Some(Turn::More) {
            self.make_ready(id);
        }
        self.retire(id);
    }

    /// Gives completions to their queues; each publishes once.
    fn deliver(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        let mut touched: Vec<QueueId> = Vec::new();
        for completion in completions.drain(..) {
            let (id, slot) = QueueId::of(completion.token);
            self.guarded(id, |queue| queue.deliver(slot, completion));
            if touched.last() != Some(&id) && !touched.contains(&id) {
                touched.push(id);
            }
        }
        self.completions = completions;
        for id in touched {
            self.guarded(id, Queue::publish);
            self.retire(id);
        }
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
        let result = catch_unwind(AssertUnwindSafe(|| what(queue)));
        let stop = match result {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(stop)) => stop,
            Err(_) => Stop::Panic,
        };
        queue.stop(stop);
        let device = queue.device.id;
        self.discard(device, None);
        None
    }

    /// Gives up all queues of a device; `done` is dropped when the last has ended.
    fn discard(&mut self, device: u64, done: Option<&Done>) {
        let mut ids = Vec::new();
        for (_, queue) in self.queues.iter_mut() {
            if queue.device.id == device {
                queue.discard(done.cloned());
                ids.push(queue.id);
            }
        }
        for id in ids {
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
            let _ = epoll::delete(&self.epoll, queue.kick_fd());
            self.load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Submits and collects; whether it has to be tried again without an event.
    fn turn_uring(&mut self) -> bool {
        match &self.uring {
            Some(uring) => uring.borrow_mut().turn(&mut self.completions),
            None => false,
        }
    }

    /// Gives up all queues and lets the io_uring empty itself, within bounds.
    fn end(&mut self) {
        let devices: Vec<u64> = self
            .queues
            .iter()
            .map(|(_, queue)| queue.device.id)
            .collect();
        for device in devices {
            self.discard(device, None);
        }
        let mut events = Vec::with_capacity(EVENTS);
        for _ in 0..LAST_TURNS {
            if self.queues.is_empty() {
                break;
            }
            self.wait(&mut events, Some(&RETRY));
            self.turn_uring();
            self.deliver();
        }
        self.mailbox.close();
    }
}
