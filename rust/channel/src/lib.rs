//! The device side's half of a channel that the data path uses: resolve an IOTLB miss, inject
//! an irq. Implementations: the embedded channel's call socket; later the kernel's device node.

use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use vduse_mem::{Entry, Iova, Resolver};

/// Injects a virtqueue's irq where the channel offers no call fd. Never blocks for long, never
/// runs driver code on this stack.
pub trait IrqSink: Send + Sync {
    /// `VDUSE_VQ_INJECT_IRQ`.
    fn inject_irq(&self, index: u32) -> Result<(), Errno>;
}

/// An answer on a call socket.
#[derive(Debug)]
pub struct Answer {
    /// The ioctl's return value, or -errno.
    pub result: i32,
    /// The struct as the framework wrote it back.
    pub payload: Vec<u8>,
    /// Fds that the call returned.
    pub fds: Vec<OwnedFd>,
}

/// One end of a call socket (docs/channel.md): one exclusive exchange at a time, from any thread.
#[derive(Debug)]
pub struct CallSocket {}

impl CallSocket {
    /// Takes over a connected SOCK_SEQPACKET socket.
    pub fn new(_socket: OwnedFd) -> CallSocket {
        todo!()
    }

    /// One call. `ECONNRESET` when the other end is gone, `EPROTO` for an answer that is none.
    pub fn call(
        &self,
        _nr: u32,
        _payload: &[u8],
        _fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, Errno> {
        todo!()
    }
}

impl Resolver for CallSocket {
    fn resolve(&self, _start: Iova, _last: Iova) -> Result<(OwnedFd, Entry), Errno> {
        todo!()
    }
}

impl IrqSink for CallSocket {
    fn inject_irq(&self, _index: u32) -> Result<(), Errno> {
        todo!()
    }
}
