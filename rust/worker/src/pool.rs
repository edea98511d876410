//! The threads.

use crate::place::{Letter, Line, Place};
use crate::task::Task;
use crate::watches::Watches;
use crate::worker::Worker;
use rustix::io::Errno;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Most workers when nobody says how many.
const DEFAULT_MOST: usize = 4;

/// Makes a task on its worker's thread.
pub(crate) type Make = Box<dyn FnOnce(Place) -> Option<Box<dyn Task>> + Send>;

/// Reaches the workers of a pool, and keeps none of them alive.
#[derive(Clone)]
pub struct Workers(Arc<[Arc<Line>]>);

impl Workers {
    /// How many; at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Makes a task on a worker's thread; `None` from `make`: there is none after all. Returns
    /// at once; what is sent to a worker that has ended is dropped. `worker` counts from 0, and
    /// on from the first after the last.
    pub fn spawn(
        &self,
        worker: usize,
        make: impl FnOnce(Place) -> Option<Box<dyn Task>> + Send + 'static,
    ) {
        self.0[worker % self.0.len()].send(Letter::Spawn(Box::new(make)));
    }
}

/// Worker threads; each serves many tasks and sleeps when none has work.
pub struct Pool {
    workers: Workers,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Starts `workers` threads; `None`: one a CPU, at most 4. ENOSYS where the system has no
    /// epoll_pwait2 (before Linux 5.11).
    pub fn new(workers: Option<usize>) -> Result<Pool, Errno> {
        let workers = workers.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(DEFAULT_MOST))
        });
        let mut lines = Vec::new();
        let mut ready = Vec::new();
        for _ in 0..workers.max(1) {
            let line = Arc::new(Line::new()?);
            ready.push((line.clone(), Watches::new(line.bell())?));
            lines.push(line);
        }
        let pool = Pool {
            workers: Workers(lines.into()),
            threads: Mutex::default(),
        };
        for (number, (line, watches)) in ready.into_iter().enumerate() {
            let thread = std::thread::Builder::new()
                .name(format!("vduse-worker-{number}"))
                .spawn(move || Worker::serve(line, watches))
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
            pool.lock_threads().push(thread);
        }
        Ok(pool)
    }

    /// How many threads.
    pub fn workers(&self) -> usize {
        self.workers.count()
    }

    /// How to reach them.
    pub fn handle(&self) -> Workers {
        self.workers.clone()
    }

    /// Ends the threads and waits for them; tasks that still run are dropped.
    pub fn close(&self) {
        for thread in self.quit() {
            // A worker catches the panics of its tasks; there is no result to look at.
            let _ = thread.join();
        }
    }

    /// Tells the threads to end.
    fn quit(&self) -> Vec<JoinHandle<()>> {
        let threads = std::mem::take(&mut *self.lock_threads());
        if !threads.is_empty() {
            for line in &*self.workers.0 {
                line.send(Letter::Quit);
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
        // Not waited for: a task may be waiting for somebody who does not answer.
        drop(self.quit());
    }
}
