//! How other threads reach a worker: commands and completions, and an eventfd that wakes it.

use crate::backend::Completion;
use crate::worker::Command;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What waits for a worker.
#[derive(Default)]
pub(crate) struct Mail {
    pub(crate) commands: Vec<Command>,
    pub(crate) completions: Vec<Completion>,
}

/// One worker's letter box.
pub(crate) struct Mailbox {
    /// `None` once the worker has ended: letters are dropped.
    mail: Mutex<Option<Mail>>,
    wake: OwnedFd,
}

impl Mailbox {
    pub(crate) fn new() -> Result<Arc<Mailbox>, Errno> {
        Ok(Arc::new(Mailbox {
            mail: Mutex::new(Some(Mail::default())),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    pub(crate) fn send(&self, command: Command) {
        self.put(|mail| mail.commands.push(command));
    }

    /// Takes everything; `into` is empty and lends its memory.
    pub(crate) fn take(&self, into: &mut Mail) {
        if let Some(mail) = &mut *self.lock() {
            std::mem::swap(mail, into);
        }
    }

    /// The worker has ended.
    pub(crate) fn close(&self) {
        let rest = self.lock().take();
        // Not under the lock: what is dropped may own anything.
        drop(rest);
    }

    /// Readable after every letter into an empty box. Never read: the worker watches for
    /// edges.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn put(&self, add: impl FnOnce(&mut Mail)) {
        let was_empty = {
            let mut mail = self.lock();
            let Some(mail) = &mut *mail else {
                return;
            };
            let was_empty = mail.commands.is_empty() && mail.completions.is_empty();
            add(mail);
            was_empty
        };
        if was_empty {
            self.wake();
        }
    }

    fn wake(&self) {
        // A full counter (2^64 letters) still wakes: nothing to handle.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes completions for one worker, from any thread.
#[derive(Clone)]
pub struct Completer(Arc<Mailbox>);

impl Completer {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Completer {
        Completer(mailbox)
    }

    /// Wakes the worker: an engine's deadline may be another one now.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// Delivers a completion; the worker is woken.
    pub fn complete(&self, completion: Completion) {
        self.0.put(|mail| mail.completions.push(completion));
    }

    /// Delivers a batch of completions at once.
    pub fn complete_all(&self, mut completions: Vec<Completion>) {
        if !completions.is_empty() {
            self.0.put(|mail| mail.completions.append(&mut completions));
        }
    }
}
