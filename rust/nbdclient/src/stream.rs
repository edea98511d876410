//! A connection's bytes: how they come and go.

use crate::outstanding::Outstanding;
use crate::replies::{Fault, Replies};
use rustix::io::Errno;
use std::fmt;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use vduse_nbdsocket::{Moved, Socket};

/// Bytes taken at once, beside what goes straight to where it belongs.
const BYTES: usize = 128 << 10;
/// Pieces of one message: two a request.
const PIECES: usize = 128;

/// Why a connection is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The server closed it.
    Closed,
    /// The system or TLS says so.
    Broken(String),
    /// The server did what it must not.
    Fault(Fault),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::Closed => write!(f, "the server closed the connection"),
            Loss::Broken(why) => write!(f, "{why}"),
            Loss::Fault(fault) => write!(f, "{fault}"),
        }
    }
}

impl From<Errno> for Loss {
    fn from(errno: Errno) -> Loss {
        Loss::Broken(errno.to_string())
    }
}

impl From<Fault> for Loss {
    fn from(fault: Fault) -> Loss {
        Loss::Fault(fault)
    }
}

/// A socket past the handshake.
pub(crate) struct Stream {
    socket: Socket,
    replies: Replies,
    bytes: Box<[u8]>,
    /// Of `bytes`: what was not looked at.
    end: usize,
    /// The socket has no more data, until it says so.
    is_drained: bool,
    /// It has no end either.
    is_idle: bool,
    /// The socket takes no more, until it says so.
    is_blocked: bool,
}

impl Stream {
    pub(crate) fn new(socket: Socket, is_structured: bool) -> Stream {
        Stream {
            socket,
            replies: Replies::new(is_structured),
            bytes: vec![0; BYTES].into(),
            end: 0,
            is_drained: false,
            is_idle: false,
            is_blocked: false,
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// The socket has had an event.
    pub(crate) fn event(&mut self) {
        self.is_drained = false;
        self.is_idle = false;
        self.is_blocked = false;
    }

    /// Before a sleep: whether there is something to do without an event. The server's end may have
    /// come with its last bytes, and is not told again.
    pub(crate) fn arm(&mut self, outstanding: &Outstanding) -> bool {
        self.is_drained = self.is_idle;
        let has_to_send = outstanding.has_to_send() || self.socket.holds_back();
        !self.is_drained || !self.is_blocked && has_to_send
    }

    /// One bounded turn: sends what waits, takes what has come. Whether anything moved.
    pub(crate) fn turn(&mut self, outstanding: &mut Outstanding) -> Result<bool, Loss> {
        let sent = self.send(outstanding)?;
        let received = self.receive(outstanding)?;
        Ok(sent | received)
    }

    fn send(&mut self, outstanding: &mut Outstanding) -> Result<bool, Loss> {
        let has_to_send = outstanding.has_to_send() || self.socket.holds_back();
        if self.is_blocked || !has_to_send {
            return Ok(false);
        }
        let (pieces, bytes) = outstanding.to_send(PIECES);
        let sent = match self.socket.send(&pieces, bytes)? {
            Moved::Bytes(sent) => sent,
            Moved::Last(sent) => {
                self.is_blocked = true;
                sent
            }
            Moved::End => return Err(Loss::Closed),
        };
        outstanding.has_sent(sent);
        Ok(sent > 0)
    }

    fn receive(&mut self, outstanding: &mut Outstanding) -> Result<bool, Loss> {
        if self.is_drained {
            return Ok(false);
        }
        let direct = self.replies.direct(outstanding).unwrap_or_default();
        let wanted = direct.len();
        let rest = &mut self.bytes[self.end..];
        let bytes = match self.socket.receive(direct, rest) {
            Ok(Moved::Bytes(bytes)) => bytes,
            Ok(Moved::Last(0)) => {
                (self.is_drained, self.is_idle) = (true, true);
                return Ok(false);
            }
            Ok(Moved::Last(bytes)) => {
                (self.is_drained, self.is_idle) = (true, false);
                bytes
            }
            Ok(Moved::End) => return Err(Loss::Closed),
            Err(why) => return Err(Loss::Broken(why)),
        };
        let direct = bytes.min(wanted);
        if direct > 0 {
            self.replies.filled(direct, outstanding)?;
        }
        self.end += bytes - direct;
        let taken = self.replies.take(&self.bytes[..self.end], outstanding)?;
        self.bytes.copy_within(taken..self.end, 0);
        self.end -= taken;
        Ok(true)
    }

    /// Tells the server of the end (`NBD_CMD_DISC`), if it listens.
    pub(crate) fn disconnect(&mut self) {
        let header = vduse_nbdwire::Header {
            flags: 0,
            command: vduse_nbdwire::command::DISC,
            cookie: 0,
            offset: 0,
            length: 0,
        };
        // A server that does not take it sees the socket's end.
        let header = header.encode();
        let _ = self.socket.send(&[IoSlice::new(&header)], header.len());
    }
}
