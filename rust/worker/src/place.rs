//! What a task has of its worker.

use crate::mailbox::Mailbox;
use crate::pool::Make;
use crate::task::{Task, TaskId};
use crate::watches::Watches;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use vduse_ring::Spin;

/// What a worker is told.
pub(crate) enum Letter {
    /// A task for it.
    Spawn(Make),
    /// Somebody has something for this task.
    Wake(TaskId),
    /// The end.
    Quit,
}

/// How other threads reach a worker.
pub(crate) struct Line {
    pub(crate) mailbox: Mailbox<Letter>,
    /// The worker's own; its counts are anybody's.
    pub(crate) spin: Spin,
    bell: OwnedFd,
}

impl Line {
    /// `polls`: the worker looks again for a moment before it sleeps.
    pub(crate) fn new(polls: bool) -> Result<Line, Errno> {
        Ok(Line {
            mailbox: Mailbox::new(),
            spin: Spin::new(polls),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub(crate) fn send(&self, letter: Letter) {
        if self.mailbox.post(letter) {
            // A full counter (2^64 letters) still wakes: nothing to handle.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// A task's place on its worker. Not to leave the worker's thread.
pub struct Place {
    task: TaskId,
    line: Arc<Line>,
    watches: Rc<Watches>,
}

impl Place {
    pub(crate) fn new(task: TaskId, line: Arc<Line>, watches: Rc<Watches>) -> Place {
        Place {
            task,
            line,
            watches,
        }
    }

    /// Wakes this task from any thread.
    pub fn waker(&self) -> Waker {
        Waker {
            task: self.task,
            line: self.line.clone(),
        }
    }

    /// Puts other tasks on this task's worker.
    pub fn spawner(&self) -> Spawner {
        Spawner::new(&self.line)
    }

    /// Watches an fd for edges of readability, and of writability where asked; events come to
    /// [`Task::event`](crate::Task::event) under `key`. EEXIST: it is watched already; EPERM: a
    /// file that cannot be polled.
    pub fn watch(&self, fd: BorrowedFd<'_>, key: u64, writable: bool) -> Result<(), Errno> {
        self.watches.add(self.task, fd, key, writable)
    }

    /// Ends a watch. Closing the fd is not enough where it has other owners.
    pub fn unwatch(&self, fd: BorrowedFd<'_>) {
        self.watches.remove(self.task, fd);
    }
}

/// Puts tasks on one worker, from any thread; keeps nothing alive. The default is that of a worker
/// that has ended.
#[derive(Clone, Default)]
pub struct Spawner(Weak<Line>);

impl Spawner {
    pub(crate) fn new(line: &Arc<Line>) -> Spawner {
        Spawner(Arc::downgrade(line))
    }

    /// Makes a task on the worker's thread; `None` from `make`: there is none after all. Returns
    /// at once; false if the worker has ended, and what is sent to one that is about to is dropped.
    pub fn spawn(
        &self,
        make: impl FnOnce(Place) -> Option<Box<dyn Task>> + Send + 'static,
    ) -> bool {
        let Some(line) = self.0.upgrade() else {
            return false;
        };
        line.send(Letter::Spawn(Box::new(make)));
        true
    }
}

/// Makes a task hot, from any thread: whoever has put something into its letter box calls it.
#[derive(Clone)]
pub struct Waker {
    task: TaskId,
    line: Arc<Line>,
}

impl Waker {
    /// The task runs soon. A call for a task that is over does nothing.
    pub fn wake(&self) {
        self.line.send(Letter::Wake(self.task));
    }
}
