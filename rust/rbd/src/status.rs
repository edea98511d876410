//! How an image stands with its cluster, from how its requests fare.
//!
//! librbd tells nobody that it lost its cluster: requests just wait. So an engine that has waited
//! for long says that the connection is lost, and the next answer that it is back. A client that
//! another one has taken the lock from is refused by the cluster for good (ESHUTDOWN).

use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vduse_device::Length;
use vduse_device::backend::{Connection, Notice, Observers};

const FENCED: &str = "the cluster refuses this client: another one has taken the image's lock";

/// What engines and the backend share of an image.
pub(crate) struct Status {
    pub(crate) observers: Observers,
    /// Bytes.
    size: AtomicU64,
    connection: Mutex<Connection>,
    /// The connection is `Lost`; looked at for every answer.
    is_lost: AtomicBool,
    /// Requests are not waited for any more until something is answered.
    is_given_up: AtomicBool,
    /// This client is refused for good.
    is_fenced: AtomicBool,
    /// Bytes of requests that ended here and not yet at librbd.
    abandoned: AtomicU64,
}

impl Status {
    pub(crate) fn new(size: Length) -> Status {
        Status {
            observers: Observers::default(),
            size: AtomicU64::new(size.0),
            connection: Mutex::new(Connection::Connected),
            is_lost: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            is_fenced: AtomicBool::new(false),
            abandoned: AtomicU64::new(0),
        }
    }

    pub(crate) fn size(&self) -> Length {
        Length(self.size.load(Ordering::Relaxed))
    }

    pub(crate) fn resize(&self, size: Length) {
        if self.size.swap(size.0, Ordering::Relaxed) != size.0 {
            self.observers.tell(&Notice::Resized(size));
        }
    }

    pub(crate) fn connection(&self) -> Connection {
        self.lock().clone()
    }

    /// Requests wait, for this reason.
    pub(crate) fn lost(&self, why: impl FnOnce() -> String) {
        self.change(|connection| match connection {
            Connection::Lost(_) => None,
            _ => Some(Connection::Lost(why())),
        });
    }

    /// Requests that wait fail now, and others at once until one of those is answered.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::SeqCst);
    }

    /// There were none.
    pub(crate) fn resume(&self) {
        self.is_given_up.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::SeqCst)
    }

    /// A request was answered so, and has ended.
    pub(crate) fn answered(&self, outcome: &Result<u64, Errno>) {
        if self.is_given_up() {
            self.resume();
        }
        if *outcome == Err(Errno::SHUTDOWN) {
            if !self.is_fenced.swap(true, Ordering::Relaxed) {
                self.change(|_| Some(Connection::Lost(FENCED.into())));
            }
        } else if self.is_lost.load(Ordering::Relaxed) && !self.is_fenced.load(Ordering::Relaxed) {
            self.change(|connection| match connection {
                Connection::Lost(why) if why != FENCED => Some(Connection::Connected),
                _ => None,
            });
        }
    }

    /// Requests of so many bytes have ended here and not at librbd.
    pub(crate) fn abandon(&self, bytes: u64) {
        self.abandoned.fetch_add(bytes, Ordering::Relaxed);
    }

    /// And now at librbd.
    pub(crate) fn recovered(&self, bytes: u64) {
        self.abandoned.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Relaxed)
    }

    fn change(&self, next: impl FnOnce(&Connection) -> Option<Connection>) {
        let now = {
            let mut connection = self.lock();
            let Some(now) = next(&connection) else {
                return;
            };
            let is_lost = matches!(now, Connection::Lost(_));
            self.is_lost.store(is_lost, Ordering::Relaxed);
            *connection = now.clone();
            now
        };
        // Not under the lock: an observer may ask.
        self.observers.tell(&Notice::Connection(now));
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
