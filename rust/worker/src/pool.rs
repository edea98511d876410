//! The threads.

use crate::place::{Letter, Line, Place};
use crate::task::Task;
use crate::watches::Watches;
use crate::worker::Worker;
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use vduse_ring::SpinStats;

/// Most workers when nobody says how many.
const DEFAULT_MOST: usize = 4;

/// How a pool's workers run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many; `None`: one a CPU, at most 4. Not used where `cpus` are named.
    pub workers: Option<usize>,
    /// Whether they look again for a moment before they sleep.
    pub polls: bool,
    /// The CPU of each, where they are pinned; empty: they are not.
    pub cpus: Vec<usize>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            workers: None,
            polls: true,
            cpus: Vec::new(),
        }
    }
}

/// Why a pool did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// The system's refusal.
    System(Errno),
    /// This CPU is not there, or not for this process.
    Cpu(usize),
}

impl From<Errno> for PoolError {
    fn from(errno: Errno) -> PoolError {
        PoolError::System(errno)
    }
}

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
    /// Starts `workers` threads with the settings that are usual; see [`Pool::start`].
    pub fn new(workers: Option<usize>) -> Result<Pool, PoolError> {
        Pool::start(&Settings {
            workers,
            ..Settings::default()
        })
    }

    /// Starts the threads. ENOSYS where the system has no epoll_pwait2 (before Linux 5.11).
    pub fn start(settings: &Settings) -> Result<Pool, PoolError> {
        let workers = match (settings.cpus.len(), settings.workers) {
            (0, Some(workers)) => workers.max(1),
            (0, None) => {
                std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(DEFAULT_MOST))
            }
            (cpus, _) => cpus,
        };
        let mut lines = Vec::new();
        let mut ready = Vec::new();
        for number in 0..workers {
            let line = Arc::new(Line::new(settings.polls)?);
            let cpu = settings.cpus.get(number).copied();
            ready.push((line.clone(), Watches::new(line.bell())?, cpu));
            lines.push(line);
        }
        let pool = Pool {
            workers: Workers(lines.into()),
            threads: Mutex::default(),
        };
        for (number, (line, watches, cpu)) in ready.into_iter().enumerate() {
            let (tell, told) = mpsc::sync_channel(1);
            let thread = std::thread::Builder::new()
                .name(format!("vduse-worker-{number}"))
                .spawn(move || {
                    let pinned = cpu.map_or(Ok(()), pin);
                    let can_serve = pinned.is_ok();
                    // Whoever waits for this is still there.
                    let _ = tell.send(pinned);
                    if can_serve {
                        Worker::serve(line, watches);
                    }
                })
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
            pool.lock_threads().push(thread);
            told.recv().unwrap_or(Err(Errno::AGAIN.into()))?;
        }
        Ok(pool)
    }

    /// How many threads.
    pub fn workers(&self) -> usize {
        self.workers.count()
    }

    /// What each worker's looking again has cost; from any thread, after the end too.
    pub fn stats(&self) -> Vec<SpinStats> {
        let lines = self.workers.0.iter();
        lines.map(|line| line.spin.stats()).collect()
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

/// The calling thread runs on this CPU alone from now on.
fn pin(cpu: usize) -> Result<(), PoolError> {
    let refused = PoolError::Cpu(cpu);
    let mut set = CpuSet::new();
    if cpu >= CpuSet::MAX_CPU {
        return Err(refused);
    }
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|errno| match errno {
        // None of the set is there, or in the control group's cpuset.
        Errno::INVAL => refused,
        errno => errno.into(),
    })
}
