//! Threads that wait for the file: for what io_uring does not do, and where it is forbidden.
//! They come when there is work and go after some idle seconds.

use super::image::Image;
use crate::Completer;
use crate::backend::{Completion, Op, StatusRequest, Token};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most threads of one file: enough to keep a disk's queue filled.
const MOST_THREADS: usize = 8;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);

enum Job {
    Op {
        token: Token,
        op: Op,
        completer: Completer,
    },
    Status(StatusRequest),
}

impl Job {
    fn is_of(&self, token: Token) -> bool {
        matches!(self, Job::Op { token: own, .. } if *own == token)
    }

    fn run(self, image: &Image) {
        match self {
            Job::Op {
                token,
                op,
                completer,
            } => {
                // A bug in one operation fails that operation; the worker waits for its end.
                let result =
                    catch_unwind(AssertUnwindSafe(|| image.run(op))).unwrap_or(Err(Errno::IO));
                end(&completer, token, result);
            }
            // It is answered when it is dropped, too.
            Job::Status(request) => {
                let _ = catch_unwind(AssertUnwindSafe(|| image.block_status(request)));
            }
        }
    }

    fn fail(self, errno: Errno) {
        match self {
            Job::Op {
                token, completer, ..
            } => end(&completer, token, Err(errno)),
            Job::Status(request) => request.refuse(errno),
        }
    }
}

fn end(completer: &Completer, token: Token, result: Result<(), Errno>) {
    completer.complete(Completion {
        token,
        result,
        data: None,
    });
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

struct Shared {
    image: Arc<Image>,
    state: Mutex<State>,
    work: Condvar,
    /// Where they may run: who opened the file may, though the worker that starts them be pinned.
    cpus: Option<CpuSet>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads of one file.
#[derive(Clone)]
pub(super) struct Threads(Arc<Shared>);

impl Threads {
    pub(super) fn new(image: Arc<Image>) -> Threads {
        Threads(Arc::new(Shared {
            image,
            state: Mutex::default(),
            work: Condvar::new(),
            cpus: sched_getaffinity(None).ok(),
        }))
    }

    /// Hands an operation to a thread; the completion goes to `completer`.
    pub(super) fn submit(&self, token: Token, op: Op, completer: &Completer) {
        self.add(Job::Op {
            token,
            op,
            completer: completer.clone(),
        });
    }

    /// Has a thread look what lies where.
    pub(super) fn block_status(&self, request: StatusRequest) {
        self.add(Job::Status(request));
    }

    fn add(&self, job: Job) {
        let mut state = self.0.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= MOST_THREADS {
            self.0.work.notify_one();
            return;
        }
        let shared = self.0.clone();
        let spawned = std::thread::Builder::new()
            .name("vduse-file".into())
            .spawn(move || serve(&shared));
        match spawned {
            Ok(_) => state.threads += 1,
            Err(_) if state.threads > 0 => {}
            Err(_) => {
                let job = state.jobs.pop_back();
                drop(state);
                if let Some(job) = job {
                    job.fail(Errno::AGAIN);
                }
            }
        }
    }

    /// Ends what has not been started.
    pub(super) fn cancel(&self, token: Token) {
        let mut cancelled = Vec::new();
        {
            let mut state = self.0.lock();
            let (these, others) = std::mem::take(&mut state.jobs)
                .into_iter()
                .partition(|job| job.is_of(token));
            state.jobs = others;
            cancelled.extend::<VecDeque<Job>>(these);
        }
        for job in cancelled {
            job.fail(Errno::CANCELED);
        }
    }
}

fn serve(shared: &Shared) {
    if let Some(cpus) = &shared.cpus {
        // Refused: it runs beside the worker that has started it.
        let _ = sched_setaffinity(None, cpus);
    }
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job.run(&shared.image);
            state = shared.lock();
            continue;
        }
        state.idle += 1;
        let (woken, wait) = shared
            .work
            .wait_timeout(state, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        state = woken;
        state.idle -= 1;
        if wait.timed_out() && state.jobs.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}
