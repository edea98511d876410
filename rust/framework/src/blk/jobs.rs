//! Programs' requests under way (jobs), and whose they are.

use super::request::Kind;
use crate::Buffer;
use rustix::io::Errno;
use std::fmt;
use std::sync::Arc;

/// How a job ended: bytes moved, or why not.
pub(super) type Outcome = Result<u64, Errno>;

/// One program's request; carried out as one or more virtio-blk requests (parts).
#[derive(Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// First byte on the disk.
    pub(super) start: u64,
    /// Bytes in all; 0 for flush and serial, which are one part all the same.
    pub(super) total: u64,
    /// Bytes handed to parts.
    pub(super) issued: u64,
    /// All parts were issued, or none will be any more.
    pub(super) closed: bool,
    /// Parts the device has.
    pub(super) in_flight: u32,
    pub(super) error: Option<Errno>,
    /// `None` once the client has gone: its buffer must not be touched any more.
    pub(super) buffer: Option<Buffer>,
    pub(super) client: Option<u32>,
    pub(super) token: u64,
}

impl Job {
    /// Ends what was not issued yet.
    pub(super) fn close(&mut self, error: Errno) {
        self.error.get_or_insert(error);
        self.closed = true;
    }

    pub(super) fn is_over(&self) -> bool {
        self.closed && self.in_flight == 0
    }
}

/// Numbered places that are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(free) = self.free.pop() {
            self.places[free as usize] = Some(value);
            return free;
        }
        self.places.push(Some(value));
        (self.places.len() - 1) as u32
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.places.get_mut(index as usize)?.as_mut()
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.places.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(value)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        let places = self.places.iter_mut().enumerate();
        places.filter_map(|(index, place)| Some((index as u32, place.as_mut()?)))
    }
}

/// What wakes a client's event loop, from any thread, with a queue's lock held.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What one handle has outstanding and has not reaped.
#[derive(Default)]
pub(super) struct Client {
    pub(super) outstanding: usize,
    pub(super) finished: Vec<(u64, Outcome)>,
    /// Of a client that belongs to an event loop.
    pub(super) wake: Option<Wake>,
    /// It sleeps.
    pub(super) armed: bool,
}

impl Client {
    /// Whether it was armed.
    pub(super) fn disarm(&mut self) -> bool {
        std::mem::take(&mut self.armed)
    }

    pub(super) fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("outstanding", &self.outstanding)
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}
