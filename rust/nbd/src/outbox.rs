//! Replies that are ready, and how they leave: many by one system call.

use crate::requests::{Requests, Slot};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::IoSlice;
use vduse_nbdsocket::{Moved, Socket};

/// Parts of one message: two a reply.
const PARTS: usize = 128;

/// Replies in the order in which they leave.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    ready: VecDeque<Slot>,
    /// Bytes of the first that have left.
    sent: usize,
    is_blocked: bool,
}

impl Outbox {
    pub(crate) fn push(&mut self, slot: Slot) {
        self.ready.push_back(slot);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// The client does not read: the socket is to be watched for room.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// The socket may have room.
    pub(crate) fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// Sends what one message holds; those that have left as a whole go to `left`. Never waits.
    pub(crate) fn send(
        &mut self,
        socket: &mut Socket,
        requests: &Requests,
        left: &mut Vec<Slot>,
    ) -> Result<(), Errno> {
        let mut parts: SmallVec<[IoSlice<'_>; PARTS]> = SmallVec::new();
        let mut bytes = 0;
        let mut skip = self.sent;
        for open in self.ready.iter().filter_map(|slot| requests.get(*slot)) {
            if parts.len() + 2 > PARTS {
                break;
            }
            let reply = open.reply(std::mem::take(&mut skip));
            bytes += reply.iter().map(|part| part.len()).sum::<usize>();
            parts.extend(reply.into_iter().map(IoSlice::new));
        }
        let moved = socket.send(&parts, bytes)?;
        self.is_blocked = !matches!(moved, Moved::Bytes(_));
        let sent = match moved {
            Moved::Bytes(sent) | Moved::Last(sent) => sent,
            Moved::End => 0,
        };
        self.sent += sent;
        while let Some(&slot) = self.ready.front() {
            let len = requests.get(slot).map_or(0, |open| open.reply_len());
            if self.sent < len {
                break;
            }
            self.sent -= len;
            self.ready.pop_front();
            left.push(slot);
        }
        Ok(())
    }
}
