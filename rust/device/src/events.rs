//! What a data path has to tell its owner: a short list, and an eventfd to poll.

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// Events kept until they are fetched; a backend that flaps loses its oldest ones, but not the
/// device's end.
const MOST_EVENTS: usize = 64;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device has stopped because of what the driver or its memory did.
    Broken {
        /// Queue where it was noticed.
        queue: u32,
        /// Why, in the user's terms.
        message: String,
    },
    /// The backend has failed a request; the first of each errno in a minute.
    Failed {
        /// Queue of the request.
        queue: u32,
        /// Operation, offset, length and errno.
        message: String,
    },
    /// The backend has another size.
    Resized {
        /// Bytes.
        size: u64,
    },
    /// Pages of our own are not used in place of the bounce pages.
    Umem {
        /// Why, and what helps.
        message: String,
    },
    /// The backend's connection changed.
    Connection {
        /// How it stands.
        message: String,
    },
}

pub(crate) struct Events {
    list: Mutex<VecDeque<Event>>,
    fd: OwnedFd,
}

impl Events {
    pub(crate) fn new() -> Result<Events, Errno> {
        Ok(Events {
            list: Mutex::default(),
            fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Readable when there are some.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn push(&self, event: Event) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() == MOST_EVENTS {
            let is_end = |event: &Event| matches!(event, Event::Broken { .. });
            let oldest = list.iter().position(|event| !is_end(event));
            list.remove(oldest.unwrap_or(0));
        }
        list.push_back(event);
        // A full counter is readable already.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Takes all.
    pub(crate) fn take(&self) -> Vec<Event> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that no event is left without a readable fd.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        list.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_flaps_hides_no_broken_device() {
        let events = Events::new().unwrap();
        let broken = Event::Broken {
            queue: 0,
            message: "why".into(),
        };
        events.push(broken.clone());
        for size in 0..1000 {
            events.push(Event::Resized { size });
        }
        let kept = events.take();
        assert_eq!((kept.len(), &kept[0]), (MOST_EVENTS, &broken));
        assert_eq!(kept[MOST_EVENTS - 1], Event::Resized { size: 999 });
    }
}
