//! What an export knows of its connections: which are open, what they have done, and why they
//! ended.

use crate::connection::Done;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use vduse_worker::Waker;

/// Events kept until they are fetched; the oldest are lost.
const MOST_EVENTS: usize = 64;

/// What connections have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that were ever taken on.
    pub connections: u64,
    /// Requests received.
    pub requests: u64,
    /// Bytes of data sent.
    pub bytes_read: u64,
    /// Bytes of data written.
    pub bytes_written: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
}

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    GoOn,
    /// Take no request any more, answer those that were taken.
    Close,
    /// End.
    Abort,
}

/// How a connection is reached.
#[derive(Default)]
struct Reach {
    order: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl Reach {
    fn tell(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection that has none yet looks once it has.
        if let Some(waker) = &*waker {
            waker.wake();
        }
    }
}

#[derive(Default)]
struct Book {
    open: HashMap<u64, Arc<Reach>>,
    ever: u64,
    is_closed: bool,
    events: VecDeque<String>,
}

/// All of it.
pub(crate) struct Ledger {
    book: Mutex<Book>,
    /// A connection has ended.
    ended: Condvar,
    event_fd: OwnedFd,
    requests: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    errors: AtomicU64,
}

impl Ledger {
    pub(crate) fn new() -> Result<Ledger, Errno> {
        Ok(Ledger {
            book: Mutex::default(),
            ended: Condvar::new(),
            event_fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            requests: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection; `None` after [`Ledger::close`].
    pub(crate) fn enter(self: &Arc<Ledger>) -> Option<Entry> {
        let mut book = self.lock();
        if book.is_closed {
            return None;
        }
        let number = book.ever;
        book.ever += 1;
        let reach = Arc::<Reach>::default();
        book.open.insert(number, reach.clone());
        Some(Entry {
            number,
            reach,
            ledger: self.clone(),
            why: None,
        })
    }

    /// Open connections.
    pub(crate) fn open(&self) -> usize {
        self.lock().open.len()
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            connections: self.lock().ever,
            requests: self.requests.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    /// Readable when there are events.
    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }

    pub(crate) fn take_events(&self) -> Vec<String> {
        let mut book = self.lock();
        // Under the lock, so that no event is left without a readable fd.
        let _ = rustix::io::read(&self.event_fd, &mut [0; 8]);
        book.events.drain(..).collect()
    }

    /// No new connections; those that are open are told.
    pub(crate) fn tell_all(&self, order: Order) {
        let mut book = self.lock();
        book.is_closed = true;
        book.open.values().for_each(|reach| reach.tell(order));
    }

    /// Waits until no connection is open; false if `deadline` came first.
    pub(crate) fn wait_ended(&self, deadline: Instant) -> bool {
        let mut book = self.lock();
        while !book.open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.ended.wait_timeout(book, left);
            (book, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

/// One connection's, from its beginning to its end.
pub(crate) struct Entry {
    number: u64,
    reach: Arc<Reach>,
    ledger: Arc<Ledger>,
    why: Option<String>,
}

impl Entry {
    /// Which connection this is, from 0.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Its task is woken by this.
    pub(crate) fn set_waker(&self, waker: Waker) {
        let mut place = self
            .reach
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = Some(waker);
    }

    pub(crate) fn order(&self) -> Order {
        match self.reach.order.load(Ordering::Acquire) {
            0 => Order::GoOn,
            1 => Order::Close,
            _ => Order::Abort,
        }
    }

    /// Adds what was done.
    pub(crate) fn add(&self, done: Done) {
        let add = |counter: &AtomicU64, number| {
            if number > 0 {
                counter.fetch_add(number, Ordering::Relaxed);
            }
        };
        add(&self.ledger.requests, done.requests);
        add(&self.ledger.bytes_read, done.bytes_read);
        add(&self.ledger.bytes_written, done.bytes_written);
        add(&self.ledger.errors, done.errors);
    }

    /// Why the connection ends: told when it has ended.
    pub(crate) fn set_why(&mut self, why: String) {
        self.why = Some(why);
    }
}

impl Drop for Entry {
    /// Whoever sees the event finds the connection gone.
    fn drop(&mut self) {
        let mut book = self.ledger.lock();
        book.open.remove(&self.number);
        self.ledger.ended.notify_all();
        let Some(why) = &self.why else {
            return;
        };
        if book.events.len() == MOST_EVENTS {
            book.events.pop_front();
        }
        book.events
            .push_back(format!("connection {}: {why}", self.number));
        // A full counter is readable already.
        let _ = rustix::io::write(&self.ledger.event_fd, &1u64.to_ne_bytes());
    }
}
