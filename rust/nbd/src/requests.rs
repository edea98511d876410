//! Requests that were taken and not answered yet.

use crate::block::Block;
use crate::check::Command;
use crate::wire::{Head, Header};
use smallvec::SmallVec;

/// Requests in flight on one connection, at most.
pub(crate) const MOST: usize = 256;

/// A place in [`Requests`], and its token at the driver.
pub(crate) type Slot = u16;

/// One request.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) header: Header,
    /// `None`: it was refused.
    pub(crate) command: Option<Command>,
    /// A flush follows before the reply (FUA).
    pub(crate) flush: bool,
    pub(crate) block: Option<Block>,
    /// The reply, once there is one.
    pub(crate) head: Option<Head>,
    /// Bytes of the block that follow the head.
    pub(crate) body: usize,
}

impl Open {
    /// The reply, less its first `sent` bytes, in two parts.
    pub(crate) fn reply(&self, sent: usize) -> SmallVec<[&[u8]; 2]> {
        let head = self.head.as_ref().map_or(&[][..], Head::bytes);
        let body = self
            .block
            .as_ref()
            .map_or(&[][..], |block| &block.bytes()[..self.body]);
        let mut parts = SmallVec::new();
        let mut before = sent;
        for part in [head, body] {
            let skipped = before.min(part.len());
            before -= skipped;
            if skipped < part.len() {
                parts.push(&part[skipped..]);
            }
        }
        parts
    }

    /// Bytes of the reply.
    pub(crate) fn reply_len(&self) -> usize {
        self.head.as_ref().map_or(0, |head| head.bytes().len()) + self.body
    }
}

/// A connection's requests, in places that are used again.
#[derive(Debug)]
pub(crate) struct Requests {
    places: Box<[Option<Open>]>,
    free: Vec<Slot>,
}

impl Requests {
    pub(crate) fn new() -> Requests {
        Requests {
            places: (0..MOST).map(|_| None).collect(),
            free: (0..MOST as Slot).rev().collect(),
        }
    }

    /// Whether there is no room for one more.
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        MOST - self.free.len()
    }

    /// `None` if there is no room.
    pub(crate) fn insert(&mut self, open: Open) -> Option<Slot> {
        let slot = self.free.pop()?;
        self.places[usize::from(slot)] = Some(open);
        Some(slot)
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Open> {
        self.places.get(usize::from(slot))?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Open> {
        self.places.get_mut(usize::from(slot))?.as_mut()
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Open> {
        let open = self.places.get_mut(usize::from(slot))?.take()?;
        self.free.push(slot);
        Some(open)
    }
}
