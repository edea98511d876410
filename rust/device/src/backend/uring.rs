//! A worker's io_uring, shared by all file engines on it. It is made by the worker that uses
//! it, so only one thread ever submits (SINGLE_ISSUER) and completions run when that thread
//! looks for them (DEFER_TASKRUN); older kernels get a ring without these.

use super::file::{Direction, Image, Transfer};
use super::{Completion, Token};
use crate::slab::Slab;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

/// Submissions collected before they are handed over.
const SUBMISSIONS: u32 = 128;
/// Operations in the kernel at once: the completion queue's size, so it cannot overflow.
const IN_KERNEL: usize = 2048;
/// `user_data` of cancellations, whose own results nobody waits for.
const CANCELLATION: u64 = u64::MAX;

/// Whether this process may use io_uring at all: EPERM (a container's seccomp filter), ENOSYS.
pub fn io_uring_allowed() -> Result<(), Errno> {
    IoUring::new(2).map(drop).map_err(errno)
}

/// What is done to a file.
pub(super) enum Work {
    Transfer(Transfer),
    Flush,
}

struct Pending {
    token: Token,
    image: Arc<Image>,
    work: Work,
    in_kernel: bool,
}

/// The ring and what is under way in it.
pub struct Uring {
    ring: IoUring,
    /// Boxed: the kernel holds pointers to a transfer's iovecs until it is submitted.
    pending: Slab<Box<Pending>>,
    /// Not yet in the ring.
    waiting: VecDeque<u32>,
    /// In the ring or the kernel, cancellations too.
    in_kernel: usize,
    /// Submissions that the kernel has not been told of.
    unsubmitted: bool,
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
            .build(SUBMISSIONS)
            .or_else(|_| builder.build(SUBMISSIONS))
            .map_err(errno)?;
        Ok(Uring {
            ring,
            pending: Slab::new(),
            waiting: VecDeque::new(),
            in_kernel: 0,
            unsubmitted: false,
        })
    }

    /// Readable when completions wait.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the fd for as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn submit(&mut self, token: Token, image: Arc<Image>, work: Work) {
        let key = self.pending.insert(Box::new(Pending {
            token,
            image,
            work,
            in_kernel: false,
        }));
        self.waiting.push_back(key);
    }

    pub(super) fn cancel(&mut self, token: Token) {
        let keys: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.token == token && pending.in_kernel)
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            let entry = opcode::AsyncCancel::new(u64::from(key))
                .build()
                .user_data(CANCELLATION);
            // Where there is no room the operation runs to its own end.
            if self.push(&entry) {
                self.in_kernel += 1;
            }
        }
    }

    /// Hands everything collected to the kernel, runs its deferred work and collects what has
    /// ended, without waiting.
    pub(crate) fn turn(&mut self, out: &mut Vec<Completion>) {
        loop {
            self.fill();
            if self.in_kernel == 0 {
                return;
            }
            // EINTR, EBUSY and EAGAIN leave the submissions where they are, for the next turn.
            let _ = self.enter();
            let ended = self.collect(out);
            if !ended || self.waiting.is_empty() {
                return;
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
            pending.in_kernel = true;
            let entry = entry(pending).user_data(u64::from(key));
            if !self.push(&entry) {
                return;
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
                self.unsubmitted = true;
                return true;
            }
            if self.enter().is_err() {
                return false;
            }
        }
        false
    }

    fn enter(&mut self) -> Result<(), Errno> {
        let count = self.ring.submission().len() as u32;
        let get_events = 1; // IORING_ENTER_GETEVENTS: runs deferred work, flushes an overflow
        // SAFETY: `count` entries are in the queue; no signal mask is passed.
        let result = unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(count, 0, get_events, None)
        };
        self.unsubmitted = !self.ring.submission().is_empty();
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
            let end = match &mut pending.work {
                Work::Transfer(transfer) => transfer.advance(result),
                Work::Flush if result == Err(Errno::INTR) => None,
                Work::Flush => Some(result.map(drop)),
            };
            match end {
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
        // The kernel may still write where it was told to: what it was told of stays mapped.
        for (_, pending) in self.pending.iter_mut() {
            if let (true, Work::Transfer(transfer)) = (pending.in_kernel, &mut pending.work) {
                transfer.leak();
            }
        }
    }
}

fn entry(pending: &Pending) -> squeue::Entry {
    let fd = types::Fd(pending.image.fd().as_raw_fd());
    let Work::Transfer(transfer) = &pending.work else {
        return opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build();
    };
    let (iovecs, offset) = (transfer.iovecs(), transfer.offset());
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
