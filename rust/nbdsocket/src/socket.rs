//! A connection's bytes on their way: plain, or under TLS.

use crate::tls::{Input, Tls};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketType, recvmsg,
    sendmsg, shutdown, sockopt,
};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connected socket past the handshake. It is shut down when dropped: its other owners, a forked
/// child's among them, do not keep it open.
pub struct Socket {
    fd: OwnedFd,
    tls: Option<Box<Tls>>,
}

/// How much went over.
#[derive(Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes, and perhaps more at once.
    Bytes(usize),
    /// So many, and no more until the socket has an event.
    Last(usize),
    /// The other side has closed it.
    End,
}

impl Socket {
    /// `tls`: the session that the handshake was made in. ENOTSOCK or EPROTOTYPE unless the fd is
    /// a stream socket.
    pub fn new(fd: OwnedFd, tls: Option<Tls>) -> Result<Socket, Errno> {
        match sockopt::socket_type(&fd)? {
            SocketType::STREAM => Ok(Socket {
                fd,
                tls: tls.map(Box::new),
            }),
            _ => Err(Errno::PROTOTYPE),
        }
    }

    /// To be watched for events.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether bytes that were taken wait here.
    pub fn holds_back(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Takes of `pieces`, of so many bytes, what goes now.
    pub fn send(&mut self, pieces: &[IoSlice<'_>], bytes: usize) -> Result<Moved, Errno> {
        let Some(tls) = &mut self.tls else {
            return match send(&self.fd, pieces) {
                Ok(sent) if sent < bytes => Ok(Moved::Last(sent)),
                Ok(sent) => Ok(Moved::Bytes(sent)),
                Err(Errno::AGAIN) => Ok(Moved::Last(0)),
                Err(errno) => Err(errno),
            };
        };
        let taken = tls.write(pieces);
        match tls.write_to(&mut Wire(&self.fd)) {
            Ok(()) => Ok(Moved::Bytes(taken)),
            Err(Errno::AGAIN) => Ok(Moved::Last(taken)),
            Err(errno) => Err(errno),
        }
    }

    /// Fills `first`, then `rest`, with what is there. The other side's end may come with the last
    /// bytes and have no event of its own. `Err`: why the connection is lost.
    pub fn receive(&mut self, first: &mut [u8], rest: &mut [u8]) -> Result<Moved, String> {
        if let Some(tls) = &mut self.tls {
            let to = if first.is_empty() { rest } else { first };
            return Ok(match tls.read_from(&mut Wire(&self.fd), to)? {
                Input::Bytes(bytes) => Moved::Bytes(bytes),
                Input::Nothing => Moved::Last(0),
                Input::End => Moved::End,
            });
        }
        let (skipped, room) = (usize::from(first.is_empty()), first.len() + rest.len());
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(rest)];
        match receive(&self.fd, &mut parts[skipped..]) {
            Ok(0) => Ok(Moved::End),
            Ok(bytes) if bytes < room => Ok(Moved::Last(bytes)),
            Ok(bytes) => Ok(Moved::Bytes(bytes)),
            Err(Errno::AGAIN) => Ok(Moved::Last(0)),
            Err(errno) => Err(errno.to_string()),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = shutdown(&self.fd, Shutdown::Both);
    }
}

/// The socket as a TLS session sees it.
struct Wire<'a>(&'a OwnedFd);

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(send(self.0, &[IoSlice::new(bytes)])?)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> std::io::Result<usize> {
        Ok(send(self.0, pieces)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Read for Wire<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        Ok(receive(self.0, &mut [IoSliceMut::new(bytes)])?)
    }
}

/// Never waits.
fn send(fd: &OwnedFd, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::default();
        sendmsg(fd, pieces, &mut control, flags)
    })
}

/// Never waits.
fn receive(fd: &OwnedFd, parts: &mut [IoSliceMut<'_>]) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| {
        // Ancillary data (fds) find no room and are closed by the kernel.
        let mut control = RecvAncillaryBuffer::default();
        recvmsg(fd, parts, &mut control, RecvFlags::DONTWAIT).map(|message| message.bytes)
    })
}
