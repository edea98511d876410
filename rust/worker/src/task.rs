//! What runs on a worker.

use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// What a round has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing was there to do.
    Idle,
    /// Something was done; there may be more.
    Worked,
}

/// Until when a task that was armed can sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not at all: work is there.
    Now,
    /// Until this time, or an event before.
    At(Instant),
    /// Until an event.
    Event,
}

/// Something that a worker serves: the queues of devices, a connection. Lives on its worker's
/// thread; a panic ends the task alone.
pub trait Task {
    /// An fd that [`Place::watch`] was told of has had an event. The task is hot now.
    fn event(&mut self, key: u64);

    /// One bounded batch. Called every round while the task is hot.
    fn run(&mut self) -> Turn;

    /// The worker is about to sleep: asks for notifications, then looks a last time.
    fn arm(&mut self) -> Next;

    /// Whether the task is over: it is dropped then.
    fn is_over(&self) -> bool {
        false
    }
}

/// Names a task on its worker; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(pub u64);

/// A task's place on its worker. Not to leave the worker's thread.
pub struct Place {}

impl Place {
    /// Wakes this task from any thread.
    pub fn waker(&self) -> Waker {
        todo!()
    }

    /// Watches an fd for edges of readability, and of writability where asked; events come to
    /// [`Task::event`] under `key`.
    pub fn watch(&self, _fd: BorrowedFd<'_>, _key: u64, _writable: bool) -> Result<(), Errno> {
        todo!()
    }

    /// Ends a watch. Closing the fd is not enough where it has other owners.
    pub fn unwatch(&self, _fd: BorrowedFd<'_>) {
        todo!()
    }
}

/// Makes a task hot, from any thread: whoever has put something into its letter box calls it.
#[derive(Clone)]
pub struct Waker {}

impl Waker {
    /// The task runs soon. A call for a task that is over does nothing.
    pub fn wake(&self) {
        todo!()
    }
}
