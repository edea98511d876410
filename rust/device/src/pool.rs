//! Where the queues of all devices are served: one task on each worker of a pool.

use crate::command::Command;
use crate::mailbox::Mailbox;
use crate::queues::Seed;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use vduse_worker::Workers;

/// What data paths keep of it.
pub(crate) struct Shared {
    workers: Vec<Worker>,
}

struct Worker {
    mailbox: Arc<Mailbox>,
    /// Queues on it, and data paths whose first queue is.
    load: Arc<AtomicUsize>,
    /// Known once it runs.
    thread: Arc<OnceLock<ThreadId>>,
}

impl Shared {
    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Takes a place on the worker with the least load, until [`Shared::release`].
    pub(crate) fn reserve(&self) -> usize {
        let load = |&worker: &usize| self.workers[worker].load.load(Ordering::Relaxed);
        let worker = (0..self.workers.len()).min_by_key(load).unwrap_or(0);
        self.workers[worker].load.fetch_add(1, Ordering::Relaxed);
        worker
    }

    pub(crate) fn release(&self, worker: usize) {
        self.workers[worker].load.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether the caller is one of the workers.
    pub(crate) fn is_current(&self) -> bool {
        let caller = thread::current().id();
        let mut threads = self.workers.iter().map(|worker| worker.thread.get());
        threads.any(|thread| thread == Some(&caller))
    }

    pub(crate) fn send(&self, worker: usize, command: Command) {
        self.workers[worker].mailbox.send(command);
    }
}

/// Serves the queues of devices on the workers of a pool, as long as those run.
pub struct Pool(Arc<Shared>);

impl Pool {
    /// Puts a task on each worker.
    pub fn new(on: &Workers) -> Pool {
        let mut workers = Vec::new();
        for worker in 0..on.count() {
            let (mailbox, load) = (Mailbox::new(), Arc::new(AtomicUsize::new(0)));
            let seed = Seed::new(mailbox.clone(), load.clone());
            let thread = Arc::new(OnceLock::new());
            let named = thread.clone();
            on.spawn(worker, move |place| {
                named.get_or_init(|| thread::current().id());
                Some(Box::new(seed.grow(place)))
            });
            workers.push(Worker {
                mailbox,
                load,
                thread,
            });
        }
        Pool(Arc::new(Shared { workers }))
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.0.clone()
    }
}
