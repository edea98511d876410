//! What a worker's queues are told.

use crate::datapath::StartError;
use crate::handle::QueueId;
use crate::irq::Irq;
use crate::queue::NewQueue;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, SyncSender};

/// Dropped when what was asked for is done.
pub(crate) type Done = Sender<()>;

/// What a worker's queues are told.
pub(crate) enum Command {
    /// Serve this queue.
    Start {
        queue: Box<NewQueue>,
        reply: SyncSender<Result<QueueId, StartError>>,
    },
    /// Take nothing more; the queue's handle hears of the end.
    Drain { id: QueueId },
    /// Irqs of this queue go another way.
    SetIrq { id: QueueId, irq: Irq, done: Done },
    /// Kicks of this queue come another way.
    SetKick {
        id: QueueId,
        kick: OwnedFd,
        reply: SyncSender<Result<(), StartError>>,
    },
    /// The device's IOTLB has a new generation.
    Refresh { device: u64, done: Done },
    /// Give the device's queues up.
    Discard { device: u64, done: Option<Done> },
}
