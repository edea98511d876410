//! How a queue's irqs are sent.

use crate::datapath::StartError;
use std::os::fd::{AsFd, OwnedFd};
use vduse_channel::IrqSink;
use vduse_ring::notify;

/// A call fd, or the channel's own way.
pub(crate) struct Irq {
    call: Option<OwnedFd>,
    index: u32,
}

impl Irq {
    /// `call`: an eventfd, a pipe or a unix socket, made O_NONBLOCK; `None`: through the channel.
    pub(crate) fn new(call: Option<OwnedFd>, index: u32) -> Result<Irq, StartError> {
        if let Some(call) = &call {
            notify::make_nonblocking(call.as_fd())
                .map_err(|errno| StartError::System("call fd", errno))?;
        }
        Ok(Irq { call, index })
    }

    /// Sends one. That the channel refuses it (no driver is live) is not the queue's business.
    pub(crate) fn send(&self, sink: &dyn IrqSink) {
        match &self.call {
            Some(call) => notify::signal(call.as_fd()),
            None => {
                let _ = sink.inject_irq(self.index);
            }
        }
    }
}
