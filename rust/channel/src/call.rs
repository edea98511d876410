//! The call socket of docs/channel.md, as its caller.

use crate::outcomes::{Counts, Outcomes};
use crate::{IrqSink, abi};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown, sockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use vduse_mem::{Backing, Entry, Iova, Resolver};

/// Most bytes of a packet, header included.
pub const MAX_PACKET: usize = 8192;
/// Most fds of a call or an answer.
pub const MAX_FDS: usize = 2;

/// `nr` or `result`, and `seq`.
const HEADER: usize = 8;
/// A silent framework must not hold a worker, which serves other devices too, for ever. No
/// call waits for anything in the framework, so this is long.
const PATIENCE: Duration = Duration::from_secs(30);
/// The least result an ioctl can have: -MAX_ERRNO of linux/err.h.
const LEAST_RESULT: i32 = -4095;

/// An answer on a call socket.
#[derive(Debug)]
pub struct Answer {
    /// The ioctl's return value, or -errno.
    pub result: i32,
    /// The struct as the framework wrote it back.
    pub payload: Vec<u8>,
    /// Fds that the call returned (close-on-exec).
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    /// The answer of a call that did not fail.
    pub(crate) fn ok(self) -> Result<Answer, Errno> {
        if self.result < 0 {
            return Err(Errno::from_raw_os_error(-self.result));
        }
        Ok(self)
    }
}

/// One end of a call socket (docs/channel.md): one exclusive exchange at a time, from any thread.
#[derive(Debug)]
pub struct CallSocket {
    socket: OwnedFd,
    exchange: Mutex<Exchange>,
    outcomes: Outcomes,
}

#[derive(Debug)]
struct Exchange {
    sequence: u32,
    /// After an exchange that went wrong nobody knows what the next packet belongs to.
    dead: bool,
    buffer: Box<[u8; MAX_PACKET]>,
}

impl AsFd for CallSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl CallSocket {
    /// Takes over a connected SOCK_SEQPACKET socket.
    pub fn new(socket: OwnedFd) -> CallSocket {
        CallSocket::with_patience(socket, PATIENCE)
    }

    fn with_patience(socket: OwnedFd, patience: Duration) -> CallSocket {
        let timeouts = [sockopt::Timeout::Send, sockopt::Timeout::Recv];
        let refused =
            timeouts.map(|which| sockopt::set_socket_timeout(&socket, which, Some(patience)));
        CallSocket {
            exchange: Mutex::new(Exchange {
                sequence: 0,
                dead: refused.iter().any(Result::is_err), // not a socket
                buffer: Box::new([0; MAX_PACKET]),
            }),
            socket,
            outcomes: Outcomes::default(),
        }
    }

    /// Counts what the data path calls from now on.
    pub fn start_counting(&self) {
        self.outcomes.start();
    }

    /// What the data path has called, by result.
    pub fn counts(&self) -> Counts {
        self.outcomes.counts()
    }

    /// One call: the ioctl's number, its struct, and the fds that it names.
    ///
    /// # Errors
    /// `ECONNRESET`: the other end is gone, or an earlier exchange went wrong. `EPROTO`: the
    /// answer is none. `ETIMEDOUT`: no answer within 30 seconds. After these three the socket
    /// is dead. `EMSGSIZE`: more than [`MAX_PACKET`] bytes or [`MAX_FDS`] fds to send. An answer
    /// whose fds this process has no room for is a result, `-EMFILE`.
    pub fn call(&self, nr: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer, Errno> {
        if HEADER + payload.len() > MAX_PACKET || fds.len() > MAX_FDS {
            return Err(Errno::MSGSIZE);
        }
        let mut exchange = self.exchange.lock().unwrap_or_else(PoisonError::into_inner);
        if exchange.dead {
            return Err(Errno::CONNRESET);
        }
        exchange.sequence = exchange.sequence.wrapping_add(1);
        let sequence = exchange.sequence;
        let answer = self
            .send(nr, sequence, payload, fds)
            .and_then(|()| self.receive(sequence, &mut exchange.buffer))
            .map_err(|errno| match errno {
                Errno::PIPE | Errno::NOTCONN => Errno::CONNRESET,
                Errno::AGAIN => Errno::TIMEDOUT,
                errno => errno,
            });
        if answer.is_err() {
            exchange.dead = true;
            self.shutdown();
        }
        answer
    }

    /// Ends the conversation, also for a call that is waiting: it and all later ones get
    /// `ECONNRESET`. The fd stays open until the last owner of this socket goes.
    pub fn shutdown(&self) {
        // Fails only where the socket is no longer connected.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    fn send(
        &self,
        nr: u32,
        sequence: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Errno> {
        let (nr, sequence) = (nr.to_ne_bytes(), sequence.to_ne_bytes());
        let packet = [&nr, &sequence, payload].map(IoSlice::new);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::MSGSIZE);
        }
        // A packet goes whole or not at all.
        retry_on_intr(|| sendmsg(&self.socket, &packet, &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    fn receive(&self, sequence: u32, buffer: &mut [u8; MAX_PACKET]) -> Result<Answer, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            let mut packet = [IoSliceMut::new(buffer)];
            recvmsg(
                &self.socket,
                &mut packet,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        // Taken out first: whatever is wrong with the packet, its fds are closed.
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Err(Errno::CONNRESET);
        }
        let fds_cut = received.flags.contains(ReturnFlags::CTRUNC);
        let cut = received.flags.contains(ReturnFlags::TRUNC);
        // The buffer's alignment may have left room for one fd more.
        if cut || received.bytes < HEADER || fds.len() + usize::from(fds_cut) > MAX_FDS {
            return Err(Errno::PROTO);
        }
        let word = |at: usize| std::array::from_fn(|byte| buffer[at + byte]);
        let result = i32::from_ne_bytes(word(0));
        if u32::from_ne_bytes(word(4)) != sequence || result < LEAST_RESULT {
            return Err(Errno::PROTO);
        }
        if fds_cut {
            // The exchange is whole, but this process has no room for all of its fds.
            return Ok(Answer {
                result: -Errno::MFILE.raw_os_error(),
                payload: Vec::new(),
                fds: Vec::new(),
            });
        }
        Ok(Answer {
            result,
            payload: buffer[HEADER..received.bytes].to_vec(),
            fds,
        })
    }

    /// An answer that has the right frame but not what the call asked for.
    fn nonsense(&self) -> Errno {
        self.shutdown();
        Errno::PROTO
    }
}

impl CallSocket {
    /// A call of the data path's.
    pub(crate) fn counted(&self, nr: u32, payload: &[u8]) -> Result<Answer, Errno> {
        let answer = self.call(nr, payload, &[]).and_then(Answer::ok);
        self.outcomes.note(nr, answer)
    }
}

impl Resolver for CallSocket {
    fn resolve(&self, start: Iova, last: Iova) -> Result<(Backing, Entry), Errno> {
        let mut answer = self.counted(abi::IOTLB_GET_FD, &abi::iotlb_request(start, last))?;
        let entry = abi::iotlb_entry(&answer.payload);
        match (entry, answer.fds.pop()) {
            (Some(entry), Some(fd)) if answer.fds.is_empty() => Ok((fd.into(), entry)),
            _ => Err(self.nonsense()),
        }
    }
}

impl IrqSink for CallSocket {
    fn inject_irq(&self, index: u32) -> Result<(), Errno> {
        self.counted(abi::VQ_INJECT_IRQ, &index.to_ne_bytes())
            .map(drop)
    }
}

#[cfg(test)]
mod tests;
