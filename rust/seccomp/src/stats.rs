//! What was notified, by kind.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Notifications so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Opens of our paths.
    pub opens: u64,
    /// stat, access and readlink calls on our paths.
    pub looks: u64,
    /// Ioctls on our nodes, irqs that were answered at once left out.
    pub ioctls: u64,
    /// Irqs that were answered at once, refused ones among them.
    pub irqs: u64,
    /// Calls that went on in the kernel: paths and fds that are not ours.
    pub passed: u64,
    /// Calls of another architecture or convention.
    pub foreign: u64,
    /// io_uring_setup(2).
    pub io_uring: u64,
}

/// The same, while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) opens: AtomicU64,
    pub(crate) looks: AtomicU64,
    pub(crate) ioctls: AtomicU64,
    pub(crate) irqs: AtomicU64,
    pub(crate) passed: AtomicU64,
    pub(crate) foreign: AtomicU64,
    pub(crate) io_uring: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self) -> Stats {
        Stats {
            opens: self.opens.load(Relaxed),
            looks: self.looks.load(Relaxed),
            ioctls: self.ioctls.load(Relaxed),
            irqs: self.irqs.load(Relaxed),
            passed: self.passed.load(Relaxed),
            foreign: self.foreign.load(Relaxed),
            io_uring: self.io_uring.load(Relaxed),
        }
    }
}

/// One more. There is one thread that counts.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
