//! What a client has sent and was not looked at yet. One system call takes many requests, and
//! the rest of a large payload goes straight to where it belongs.

use crate::wire::Header;
use vduse_nbdsocket::{Moved, Socket};

/// Bytes taken at once.
const BYTES: usize = 128 << 10;

/// A connection's receive buffer.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// The socket has no more data, until it says so.
    is_drained: bool,
    /// It has no end either.
    is_idle: bool,
    has_ended: bool,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox {
            bytes: vec![0; BYTES].into(),
            start: 0,
            end: 0,
            is_drained: false,
            is_idle: false,
            has_ended: false,
        }
    }

    /// The socket may have more.
    pub(crate) fn more(&mut self) {
        self.is_drained = false;
        self.is_idle = false;
    }

    /// Before a sleep: the end may have come together with the last data, and is not told again.
    pub(crate) fn look_again(&mut self) {
        self.is_drained = self.is_idle;
    }

    /// Whether a look at the socket could bring something.
    pub(crate) fn can_fill(&self) -> bool {
        !self.is_drained && !self.has_ended
    }

    /// The client sends nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Bytes not looked at.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// The next header, if it is there as a whole; it stays.
    pub(crate) fn header(&self) -> Option<&[u8; Header::BYTES]> {
        self.bytes[self.start..self.end].first_chunk()
    }

    /// Passes over at most `len` bytes: how many.
    pub(crate) fn skip(&mut self, len: usize) -> usize {
        let len = len.min(self.len());
        self.start += len;
        len
    }

    /// Copies what is there: how many bytes.
    pub(crate) fn copy_to(&mut self, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len());
        to[..len].copy_from_slice(&self.bytes[self.start..][..len]);
        self.start += len;
        len
    }

    /// Takes from the socket what it has, first for `direct`, the rest for the buffer. Returns
    /// how many bytes went to `direct`; `None` if there was nothing, not even an end. `Err`: why
    /// the connection is lost. Never waits.
    pub(crate) fn fill(
        &mut self,
        socket: &mut Socket,
        direct: &mut [u8],
    ) -> Result<Option<usize>, String> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let wanted = direct.len();
        let moved = socket.receive(direct, &mut self.bytes[self.end..])?;
        // Less than there was room for: there was no more data (epoll(7)).
        self.is_drained = !matches!(moved, Moved::Bytes(_));
        self.is_idle = moved == Moved::Last(0);
        self.has_ended = moved == Moved::End;
        let bytes = match moved {
            Moved::Last(0) => return Ok(None),
            Moved::Bytes(bytes) | Moved::Last(bytes) => bytes,
            Moved::End => 0,
        };
        let direct = bytes.min(wanted);
        self.end += bytes - direct;
        Ok(Some(direct))
    }
}
