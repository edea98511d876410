//! The connections to one export, and which of them are wanted.

use crate::facts::{Facts, flag};
use crate::idle::Idle;
use crate::post::Post;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::ThreadId;
use vduse_nbdsocket::Socket;

/// Connections of one worker, and of all, where there may be several: a server answers those side
/// by side. A worker has one in any case.
const OF_A_WORKER: usize = 4;
const MOST: usize = 16;

/// One connection, as others see it.
pub(crate) struct Entry {
    pub(crate) post: Arc<Post>,
    pub(crate) thread: ThreadId,
    /// Why it is down.
    pub(crate) lost: Option<String>,
    /// It has no socket, and none was refused since.
    pub(crate) wants: bool,
    /// It has had a socket.
    pub(crate) was_up: bool,
    /// The server has never had room for it, or has no more several connections that see one disk:
    /// not asked again while there are others.
    pub(crate) is_given_up: bool,
}

pub(crate) struct State {
    pub(crate) facts: Facts,
    pub(crate) links: BTreeMap<u32, Entry>,
    pub(crate) last_number: u32,
    /// While there are no others.
    pub(crate) idle: Idle,
    pub(crate) is_closed: bool,
}

impl State {
    /// How many connections a worker that has none gets.
    pub(crate) fn to_make(&self) -> usize {
        match self.facts.has(flag::CAN_MULTI_CONN) {
            true => MOST.saturating_sub(self.links.len()).clamp(1, OF_A_WORKER),
            false => 1,
        }
    }

    /// A connection on this thread.
    pub(crate) fn add(&mut self, thread: ThreadId) -> (u32, Arc<Post>) {
        self.last_number += 1;
        let post = Arc::new(Post::new());
        let (arrival, lost) = self.idle.take();
        let has_socket = arrival.is_some();
        if has_socket {
            post.put(|mail| mail.arrival = arrival);
        }
        let entry = Entry {
            post: post.clone(),
            thread,
            lost,
            wants: !has_socket,
            was_up: has_socket,
            is_given_up: false,
        };
        self.links.insert(self.last_number, entry);
        (self.last_number, post)
    }

    /// The oldest connection alone remains: a flush on one does not cover what others wrote.
    pub(crate) fn give_up_others(&mut self) {
        for entry in self.links.values_mut().skip(1) {
            if !std::mem::replace(&mut entry.is_given_up, true) {
                entry.post.put(|mail| mail.is_given_up = true);
            }
        }
    }

    /// A socket for this connection: whether it had been lost; `None`: it is not wanted any more.
    pub(crate) fn arrive(&mut self, number: u32, socket: Socket, facts: Facts) -> Option<bool> {
        if !self.has(number) {
            return None;
        }
        if number == Idle::NUMBER {
            return Some(self.idle.put(socket, facts));
        }
        let is_main = self.is_main(number);
        let entry = self.links.get_mut(&number)?;
        if !entry.post.put(|mail| mail.arrival = Some((socket, facts))) {
            return None;
        }
        entry.was_up = true;
        Some(is_main & entry.lost.take().is_some())
    }

    /// Whether this connection is still there.
    pub(crate) fn has(&self, number: u32) -> bool {
        match number {
            Idle::NUMBER => self.links.is_empty() && self.idle.is_down(),
            _ => self.links.get(&number).is_some_and(|it| !it.is_given_up),
        }
    }

    /// Why there is no connection.
    pub(crate) fn lost(&self) -> Option<&str> {
        match self.links.values().next() {
            Some(main) => main.lost.as_deref(),
            None => self.idle.lost(),
        }
    }

    /// Whether this is the oldest connection.
    pub(crate) fn is_main(&self, number: u32) -> bool {
        self.links.keys().next() == Some(&number)
    }
}
