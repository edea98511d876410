//! What a backend tells those who use it: it was resized, its connection changed.

use crate::Length;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// How the link to whatever holds the bytes stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// There is none: the bytes are on this host.
    Local,
    /// Up.
    Connected,
    /// Down, and why; operations wait or fail.
    Lost(String),
}

/// What happened to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The disk has this many bytes now.
    Resized(Length),
    /// The connection is now this.
    Connection(Connection),
}

/// Who wants to know.
pub trait Observer: Send + Sync {
    /// Called on the thread that noticed; must not block.
    fn notice(&self, notice: &Notice);
}

/// The observers of one backend.
#[derive(Default)]
pub struct Observers(Mutex<Vec<Weak<dyn Observer>>>);

impl Observers {
    /// Adds one; it leaves by being dropped.
    pub fn add(&self, observer: Weak<dyn Observer>) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| known.strong_count() > 0);
        list.push(observer);
    }

    /// Tells all of them.
    pub fn tell(&self, notice: &Notice) {
        let list: Vec<Arc<dyn Observer>> = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for observer in list {
            observer.notice(notice);
        }
    }
}
