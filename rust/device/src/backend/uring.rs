//! A worker's io_uring, shared by all file engines on it. It is made by the worker that uses
//! it, so only one thread ever submits (SINGLE_ISSUER) and completions run when that thread
//! looks for them (DEFER_TASKRUN); older kernels get a ring without these. Completions are
//! told by a registered eventfd, and by a flag in the ring's memory while the worker is awake:
//! polling the ring itself misses those that a kernel worker thread makes under DEFER_TASKRUN
//! (seen on Linux 6.18).

use super::file::{Direction, Image, Transfer};
use super::fixed::{Fixed, FixedTable};
use super::{Completion, Token};
use crate::slab::Slab;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use vduse_mem::Region;

/// Submissions collected before they are handed over.
const SUBMISSIONS: u32 = 128;
/// Operations in the kernel at once: the completion queue's size, so it cannot overflow.
const IN_KERNEL: usize = 2048;
/// `user_data` of cancellations, whose own results nobody waits for.
const CANCELLATION: u64 = u64::MAX;

/// Whether this process may use io_uring: EPERM (a container's seccomp filter), ENOSYS. Makes a
/// ring as a worker does, since a filter may forbid any of the three system calls.
pub fn io_uring_allowed() -> Result<(), Errno> {
    Uring::new()?.enter()
}

struct Pending {
    token: Token,
    image: Arc<Image>,
    /// `None`: a flush.
    transfer: Option<Transfer>,
    /// Where all of the transfer's memory is registered.
    fixed: Option<Rc<Fixed>>,
    in_kernel: bool,
    /// Not to be taken up again where it ended half way or was interrupted.
    is_cancelled: bool,
}

/// The ring and what is under way in it.
pub struct Uring {
    ring: IoUring,
    table: FixedTable,
    /// Signalled when completions, or the deferred work that makes them, come in.
    event: OwnedFd,
    /// Boxed: the kernel holds pointers to a transfer's iovecs until it is submitted.
    pending: Slab<Box<Pending>>,
    /// Not yet in the ring.
    waiting: VecDeque<u32>,
    /// In the ring or the kernel, cancellations too.
    in_kernel: usize,
    /// Whose operations the next turn ends early.
    cancelling: HashSet<Token>,
}

impl Uring {
    /// A ring for the calling thread.
    pub(super) fn new() -> Result<Uring, Errno> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(2 * IN_KERNEL as u32);
        let ring = builder
            .clone()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(SUBMISSIONS)
            .or_else(|_| builder.build(SUBMISSIONS))
            .map_err(errno)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter()
            .register_eventfd(event.as_raw_fd())
            .map_err(errno)?;
        Ok(Uring {
            ring,
            table: FixedTable::default(),
            event,
            pending: Slab::new(),
            waiting: VecDeque::new(),
            in_kernel: 0,
            cancelling: HashSet::new(),
        })
    }

    /// Watch it edge-triggered: nobody reads it. An edge says that completions may wait.
    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// The region, registered with this ring; `None` where the kernel refuses that.
    pub(super) fn register(&mut self, region: &Arc<Region>) -> Option<Rc<Fixed>> {
        self.table.register(&self.ring, region)
    }

    /// Unpins registered regions that nobody uses any more.
    pub(super) fn unregister_unused(&mut self) {
        self.table.tidy(&self.ring);
    }

    /// Takes a transfer of `image`, or without one a flush. `fixed`: the region that holds all of
    /// the transfer's memory, where it is registered.
    pub(super) fn submit(
        &mut self,
        token: Token,
        image: Arc<Image>,
        transfer: Option<Transfer>,
        fixed: Option<Rc<Fixed>>,
    ) {
        let key = self.pending.insert(Box::new(Pending {
            token,
            image,
            transfer,
            fixed,
            in_kernel: false,
            is_cancelled: false,
        }));
        self.waiting.push_back(key);
    }

    /// The operations under `token` end early, from the next turn on: those of a whole virtqueue
    /// are looked for in one pass.
    pub(super) fn cancel(&mut self, token: Token) {
        self.cancelling.insert(token);
    }

    /// Ends what was cancelled and has not reached the kernel; asks the kernel to end the rest.
    fn end_cancelled(&mut self, out: &mut Vec<Completion>) {
        if self.cancelling.is_empty() {
            return;
        }
        let tokens = std::mem::take(&mut self.cancelling);
        let pending = self.pending.iter_mut();
        let these = pending.filter(|(_, pending)| tokens.contains(&pending.token));
        let these: Vec<(u32, bool)> = these
            .map(|(key, pending)| {
                pending.is_cancelled = true;
                (key, pending.in_kernel)
            })
            .collect();
        for (key, in_kernel) in these {
            if in_kernel {
                let entry = opcode::AsyncCancel::new(u64::from(key))
                    .build()
                    .user_data(CANCELLATION);
                // Where there is no room the operation runs to its own end.
                if self.push(&entry) {
                    self.in_kernel += 1;
                }
            } else if let Some(pending) = self.pending.remove(key) {
                out.push(Completion {
                    token: pending.token,
                    result: Err(Errno::CANCELED),
                    data: None,
                });
            }
        }
        let pending = &mut self.pending;
        self.waiting.retain(|&key| pending.get_mut(key).is_some());
    }

    /// Whether [`Uring::turn`] would find something to hand over or to collect. Reads memory
    /// only.
    pub(crate) fn has_news(&mut self) -> bool {
        if !self.waiting.is_empty() || !self.cancelling.is_empty() {
            return true;
        }
        let submission = self.ring.submission();
        let is_idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        !is_idle || !self.ring.completion().is_empty()
    }

    /// Hands everything collected to the kernel, runs its deferred work and collects what has
    /// ended, without waiting. True if the kernel took not everything: try again soon.
    pub(crate) fn turn(&mut self, out: &mut Vec<Completion>) -> bool {
        self.end_cancelled(out);
        self.unregister_unused();
        loop {
            self.fill();
            if self.in_kernel == 0 {
                return !self.waiting.is_empty();
            }
            let entered = self.enter();
            if !self.collect(out) {
                return entered.is_err() || !self.ring.submission().is_empty();
            }
            if self.waiting.is_empty() && self.ring.submission().is_empty() {
                return false;
            }
        }
    }

    /// Moves waiting operations into the submission queue.
    fn fill(&mut self) {
        while self.in_kernel < IN_KERNEL {
            let Some(&key) = self.waiting.front() else {
                return;
            };
            let Some(pending) = self.pending.get_mut(key) else {
                self.waiting.pop_front();
                continue;
            };
            let entry = entry(pending).user_data(u64::from(key));
            if !self.push(&entry) {
                return;
            }
            if let Some(pending) = self.pending.get_mut(key) {
                pending.in_kernel = true;
            }
            self.waiting.pop_front();
            self.in_kernel += 1;
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: the entry's buffers and iovecs belong to a boxed Pending, which stays in
            // the slab until its completion has been collected; its file to the Pending's image.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            if self.enter().is_err() {
                return false;
            }
        }
        false
    }

    /// Submits and runs the kernel's deferred work; collects nothing.
    pub(super) fn enter(&mut self) -> Result<(), Errno> {
        let count = self.ring.submission().len() as u32;
        let get_events = 1; // IORING_ENTER_GETEVENTS: runs deferred work, flushes an overflow
        // SAFETY: `count` entries are in the queue; no signal mask is passed.
        let result = unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(count, 0, get_events, None)
        };
        result.map(drop).map_err(errno)
    }

    /// Whether anything ended or has to go on.
    fn collect(&mut self, out: &mut Vec<Completion>) -> bool {
        let before = self.in_kernel;
        loop {
            let Some(entry) = self.ring.completion().next() else {
                return self.in_kernel != before;
            };
            self.in_kernel -= 1;
            if entry.user_data() == CANCELLATION {
                continue;
            }
            let key = entry.user_data() as u32;
            let Some(pending) = self.pending.get_mut(key) else {
                continue;
            };
            let result = u32::try_from(entry.result())
                .map_err(|_| Errno::from_raw_os_error(-entry.result()));
            let end = match &mut pending.transfer {
                Some(transfer) => transfer.advance(result),
                None if result == Err(Errno::INTR) => None,
                None => Some(result.map(drop)),
            };
            match end.or(pending.is_cancelled.then_some(Err(Errno::CANCELED))) {
                None => {
                    pending.in_kernel = false;
                    self.waiting.push_back(key);
                }
                Some(result) => {
                    out.push(Completion {
                        token: pending.token,
                        result,
                        data: None,
                    });
                    self.pending.remove(key);
                }
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.in_kernel > 0 {
            // The kernel may still write where it was told to: that memory is never freed.
            std::mem::forget(std::mem::replace(&mut self.pending, Slab::new()));
        }
    }
}

fn entry(pending: &Pending) -> squeue::Entry {
    let fd = types::Fd(pending.image.fd().as_raw_fd());
    let Some(transfer) = &pending.transfer else {
        return opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build();
    };
    let (iovecs, offset) = (transfer.iovecs(), transfer.offset());
    let fixed = pending.fixed.as_ref();
    if let Some(entry) =
        fixed.and_then(|fixed| fixed.entry(fd, transfer.direction(), iovecs, offset))
    {
        return entry;
    }
    match (transfer.direction(), iovecs) {
        (Direction::Read, [one]) if u32::try_from(one.iov_len).is_ok() => {
            opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32)
                .offset(offset)
                .build()
        }
        (Direction::Write, [one]) if u32::try_from(one.iov_len).is_ok() => {
            opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
                .offset(offset)
                .build()
        }
        (Direction::Read, _) => opcode::Readv::new(fd, iovecs.as_ptr(), iovecs.len() as u32)
            .offset(offset)
            .build(),
        (Direction::Write, _) => opcode::Writev::new(fd, iovecs.as_ptr(), iovecs.len() as u32)
            .offset(offset)
            .build(),
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
