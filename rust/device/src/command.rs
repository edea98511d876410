//! What a worker's queues are told.

use crate::backend;
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
    /// The device's queues take nothing more, and let go of what serves them once nothing is in
    /// flight.
    Pause { device: u64, done: Done },
    /// They go on; those that have let go of what served them get it anew.
    Resume {
        device: u64,
        failed: Sender<backend::Error>,
    },
    /// Give the device's queues up.
    Discard { device: u64, done: Option<Done> },
}
