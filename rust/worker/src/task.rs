//! What runs on a worker.

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
    /// An fd that [`Place::watch`](crate::Place::watch) was told of has had an event. The task
    /// is hot now.
    fn event(&mut self, key: u64);

    /// Its [`Waker`](crate::Waker) was used. The task is hot now. Events that came before are
    /// told of before the next [`Task::run`].
    fn woken(&mut self) {}

    /// One bounded batch. Called every round while the task is hot; a task is hot when it is
    /// new, after an event, when it was woken, and when the time that it named has come.
    fn run(&mut self) -> Turn;

    /// The task is about to be hot no more: asks for notifications, then looks a last time.
    fn arm(&mut self) -> Next;

    /// Whether an event on one of its fds, while it is hot, can tell it what [`Task::run`] does not
    /// find by itself. Asked after that.
    fn needs_events(&self) -> bool {
        true
    }

    /// Whether the task is over: it is dropped then. Asked after [`Task::run`].
    fn is_over(&self) -> bool {
        false
    }
}

/// Names a task on its worker; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TaskId {
    /// Where it is kept.
    pub(crate) key: usize,
    /// Tells apart those that were kept there.
    pub(crate) run: u64,
}
