//! One virtqueue on its worker: takes requests in batches, publishes once a batch, sends at
//! most one irq a batch.

use crate::backend::{Completion, Engine, Info, Kind, Token};
use crate::blk::{self, Execution, Parsed, Progress, Rules, Traffic, Used};
use crate::datapath::{Device, StartError};
use crate::slab::Slab;
use crate::stats::{Counters, Stats};
use crate::worker::Done;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use vduse_ring::{Chain, QueueState};

pub(crate) use crate::handle::{Handle, Outcome, QueueId};
pub(crate) use crate::irq::Irq;
pub(crate) use crate::live::{Live, Stop};

/// Requests taken before other queues have their turn.
const BATCH_REQUESTS: usize = 128;
/// Bytes of requests taken before other queues have their turn.
const BATCH_BYTES: u64 = 4 << 20;

/// A queue on its way to its worker.
pub(crate) struct NewQueue {
    pub(crate) device: Arc<Device>,
    pub(crate) index: u32,
    pub(crate) features: u64,
    pub(crate) live: Live,
    pub(crate) kick: OwnedFd,
    pub(crate) irq: Irq,
    pub(crate) counters: Arc<Counters>,
    pub(crate) handle: Arc<Handle>,
}

/// What a turn has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing until the next kick.
    Idle,
    /// Requests wait: another turn, after the other queues.
    More,
}

/// A queue on its worker.
pub(crate) struct Queue {
    pub(crate) id: QueueId,
    new: NewQueue,
    engine: Box<dyn Engine>,
    in_flight: Slab<Execution>,
    /// False once the ring and guest memory are given up: requests end unseen.
    is_live: bool,
    is_draining: bool,
    /// In the worker's list of queues with work.
    pub(crate) is_queued: bool,
    /// Who waits for the last request of a queue that was given up.
    waiters: Vec<Done>,
}
