//! How a queue's irqs are sent.

use crate::datapath::StartError;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::os::fd::OwnedFd;
use vduse_channel::IrqSink;

/// A call fd, or the channel's own way.
pub(crate) struct Irq {
    call: Option<OwnedFd>,
    index: u32,
}

impl Irq {
    /// `call`: an eventfd or a pipe, made O_NONBLOCK; `None`: through the channel.
    pub(crate) fn new(call: Option<OwnedFd>, index: u32) -> Result<Irq, StartError> {
        if let Some(call) = &call {
            fcntl_getfl(call)
                .and_then(|flags| fcntl_setfl(call, flags | OFlags::NONBLOCK))
                .map_err(|errno| StartError::System("call fd", errno))?;
        }
        Ok(Irq { call, index })
    }

    /// Sends one. EAGAIN means that one is pending unseen; any other error means that nobody
    /// is there to see it. Neither is the queue's business.
    pub(crate) fn send(&self, sink: &dyn IrqSink) {
        let _ = match &self.call {
            Some(call) => rustix::io::write(call, &1u64.to_ne_bytes()).map(drop),
            None => sink.inject_irq(self.index),
        };
    }
}
