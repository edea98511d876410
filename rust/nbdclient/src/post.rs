//! How other threads reach a connection on its worker.

use crate::facts::Facts;
use crate::request::Request;
use crate::stale::Cancelled;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use vduse_nbdsocket::Socket;
use vduse_worker::Waker;

/// What waits for the connection.
#[derive(Default)]
pub(crate) struct Mail {
    pub(crate) requests: Vec<Request>,
    pub(crate) cancelled: Vec<Cancelled>,
    /// A socket past the handshake.
    pub(crate) arrival: Option<(Socket, Facts)>,
    /// The connection ends; what it holds moves to the main one.
    pub(crate) is_given_up: bool,
    /// No requests come any more.
    pub(crate) is_closing: bool,
    /// The worker was woken for this.
    is_waiting: bool,
}

#[cfg(test)]
impl Mail {
    pub(crate) fn is_waiting(&self) -> bool {
        self.is_waiting
    }
}

/// A connection's letter box.
pub(crate) struct Post {
    /// `None` once the connection's task has ended.
    mail: Mutex<Option<Mail>>,
    /// Requests under way there; [`Post::DOWN`] without a connection.
    load: AtomicUsize,
    waker: OnceLock<Waker>,
}

impl Post {
    /// More than any load.
    pub(crate) const DOWN: usize = usize::MAX;

    pub(crate) fn new() -> Post {
        Post {
            mail: Mutex::new(Some(Mail::default())),
            load: AtomicUsize::new(Post::DOWN),
            waker: OnceLock::new(),
        }
    }

    /// Who is woken for letters. Who sets it looks into the box afterwards.
    pub(crate) fn set_waker(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    /// Requests under way there when it was last told; [`Post::DOWN`] without a connection.
    pub(crate) fn load(&self) -> usize {
        self.load.load(Relaxed) // a hint
    }

    /// Tells that; `None`: there is no connection.
    pub(crate) fn set_load(&self, load: Option<usize>) {
        self.load.store(load.unwrap_or(Post::DOWN), Relaxed);
    }

    /// Leaves something; false: the connection's task has ended, and `add` was not called.
    pub(crate) fn put(&self, add: impl FnOnce(&mut Mail)) -> bool {
        let was_waiting = {
            let mut mail = self.lock();
            let Some(mail) = &mut *mail else {
                return false;
            };
            add(mail);
            std::mem::replace(&mut mail.is_waiting, true)
        };
        if !was_waiting && let Some(waker) = self.waker.get() {
            waker.wake();
        }
        true
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> Mail {
        let mut mail = self.lock();
        mail.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The task has ended; what it did not take.
    pub(crate) fn close(&self) -> Mail {
        self.lock().take().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
