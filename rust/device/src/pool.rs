//! The pool of workers that serve the queues of all devices.

use crate::mailbox::Mailbox;
use crate::worker::{self, Command};
use rustix::io::Errno;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Most workers when nobody says how many.
const DEFAULT_MOST: usize = 4;

/// What data paths keep of a pool.
pub(crate) struct Shared {
    workers: Vec<Worker>,
}

struct Worker {
    mailbox: Arc<Mailbox>,
    /// Queues on it.
    load: Arc<AtomicUsize>,
}

impl Shared {
    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The worker with the fewest queues.
    pub(crate) fn least_loaded(&self) -> usize {
        (0..self.workers.len())
            .min_by_key(|&worker| self.workers[worker].load.load(Ordering::Relaxed))
            .unwrap_or(0)
    }

    pub(crate) fn send(&self, worker: usize, command: Command) {
        self.workers[worker].mailbox.send(command);
    }
}

/// Worker threads; each serves many queues and sleeps when none has work.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Starts `workers` threads; `None`: one a CPU, at most 4.
    pub fn new(workers: Option<usize>) -> Result<Pool, Errno> {
        let workers = workers.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(DEFAULT_MOST))
        });
        let mut shared = Shared {
            workers: Vec::new(),
        };
        let mut ready = Vec::new();
        for _ in 0..workers.max(1) {
            let mailbox = Mailbox::new()?;
            let load = Arc::new(AtomicUsize::new(0));
            ready.push(worker::Seed::new(mailbox.clone(), load.clone())?);
            shared.workers.push(Worker { mailbox, load });
        }
        let pool = Pool {
            shared: Arc::new(shared),
            threads: Mutex::default(),
        };
        for (number, seed) in ready.into_iter().enumerate() {
            let thread = std::thread::Builder::new()
                .name(format!("vduse-worker-{number}"))
                .spawn(move || seed.run())
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
            pool.lock_threads().push(thread);
        }
        Ok(pool)
    }

    /// How many threads.
    pub fn workers(&self) -> usize {
        self.shared.workers()
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Ends the threads and waits for them; queues that still run stop without finishing.
    pub fn close(&self) {
        for thread in self.quit() {
            // A worker catches the panics of its queues; there is no result to look at.
            let _ = thread.join();
        }
    }

    /// Tells the threads to end.
    fn quit(&self) -> Vec<JoinHandle<()>> {
        let threads = std::mem::take(&mut *self.lock_threads());
        if !threads.is_empty() {
            for worker in 0..self.workers() {
                self.shared.send(worker, Command::Quit);
            }
        }
        threads
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Not waited for: a worker may be waiting for a resolver that does not answer.
        drop(self.quit());
    }
}
