//! One virtqueue on its worker: takes requests in batches, publishes once a batch, sends at
//! most one irq a batch.

use crate::backend::{Completion, Engine, Info, Kind};
use crate::blk::{self, Execution, Parsed, Progress, Rules, Traffic, Used};
use crate::datapath::Device;
use crate::handle::{Handle, Outcome, QueueId};
use crate::irq::Irq;
use crate::live::{Live, Stop};
use crate::slab::Slab;
use crate::stats::{Counters, Stats};
use crate::worker::Done;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vduse_ring::Chain;

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
    pub(crate) device: Arc<Device>,
    index: u32,
    features: u64,
    /// `None` once the queue was given up: requests in flight then end unseen.
    live: Option<Live>,
    engine: Box<dyn Engine>,
    in_flight: Slab<Execution>,
    kick: OwnedFd,
    irq: Irq,
    counters: Arc<Counters>,
    handle: Arc<Handle>,
    batch: Stats,
    is_draining: bool,
    /// In the worker's list of queues with work.
    pub(crate) is_queued: bool,
    /// Completions are staged in the ring.
    pub(crate) is_staged: bool,
    /// Who waits for the end of a queue that was given up.
    waiters: Vec<Done>,
}

impl Queue {
    pub(crate) fn new(id: QueueId, new: NewQueue, engine: Box<dyn Engine>) -> Queue {
        Queue {
            id,
            device: new.device,
            index: new.index,
            features: new.features,
            live: Some(new.live),
            engine,
            in_flight: Slab::new(),
            kick: new.kick,
            irq: new.irq,
            counters: new.counters,
            handle: new.handle,
            batch: Stats::default(),
            is_draining: false,
            is_queued: false,
            is_staged: false,
            waiters: Vec::new(),
        }
    }

    pub(crate) fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    pub(crate) fn kicked(&mut self) {
        self.batch.kicks += 1;
    }

    /// Takes and starts one batch of requests.
    pub(crate) fn turn(&mut self, chain: &mut Chain) -> Result<Turn, Stop> {
        let turn = self.take_batch(chain);
        if let Some(live) = &self.live {
            // What was read where memory was taken away means nothing, an error included.
            live.check_poison()?;
        }
        turn
    }

    fn take_batch(&mut self, chain: &mut Chain) -> Result<Turn, Stop> {
        let Some(live) = &mut self.live else {
            return Ok(Turn::Idle);
        };
        live.refresh()?;
        live.ring.suppress_kicks();
        let info = self.device.backend.info();
        let rules = Rules {
            limits: self.device.limits,
            features: self.features,
            capacity: self.device.capacity.load(Ordering::Relaxed),
            read_only: info.read_only || self.device.limits.read_only,
        };
        let (mut requests, mut bytes) = (0, 0);
        let more = loop {
            let Some(live) = &mut self.live else {
                break false;
            };
            // A drain takes what a predecessor had in flight, and nothing else.
            if self.is_draining && live.ring.recovered() == 0 {
                break false;
            }
            if requests == BATCH_REQUESTS || bytes >= BATCH_BYTES {
                break true;
            }
            if !live.ring.pop(&mut live.view, chain)? {
                if live.ring.enable_kicks() {
                    live.ring.suppress_kicks();
                    continue;
                }
                break false;
            }
            requests += 1;
            bytes += chain_bytes(chain);
            match blk::parse(chain, &mut live.view, &rules).map_err(Stop::Status)? {
                Parsed::Short => {
                    live.ring.complete(chain.id, chain.slots, 0);
                    self.batch.errors += 1;
                    self.batch.requests += 1;
                    self.is_staged = true;
                }
                Parsed::Refuse(finish, status) => {
                    let used = finish.refuse(status);
                    self.stage(used, Err(Errno::INVAL));
                }
                Parsed::Run(request) => self.start(request, &info),
            }
        };
        self.engine.flush();
        Ok(if more { Turn::More } else { Turn::Idle })
    }

    fn start(&mut self, request: blk::Request, info: &Info) {
        let slot = self.in_flight.next_key();
        let token = self.id.token(slot);
        let engine = self.engine.as_mut();
        match Execution::start(request, &self.device.serial, info, engine, token) {
            (execution, Progress::Over) => {
                let (used, end) = execution.finish();
                self.stage(used, end);
            }
            (execution, Progress::Pending) => {
                let kept = self.in_flight.insert(execution);
                debug_assert_eq!(kept, slot);
            }
        }
    }

    /// Takes the completion of an operation of the request in `slot`.
    pub(crate) fn deliver(&mut self, slot: u32, completion: Completion) -> Result<(), Stop> {
        let Some(execution) = self.in_flight.get_mut(slot) else {
            return Ok(());
        };
        let info = self.device.backend.info();
        if self.live.is_none() {
            // Given up: nothing of it reaches guest memory, nothing more is started.
            if execution.abandon_one() {
                self.in_flight.remove(slot);
            }
            return Ok(());
        }
        if let Some(live) = &mut self.live
            && !self.is_staged
        {
            // A batch of completions begins.
            live.refresh()?;
        }
        let progress = execution.complete(completion, &info, self.engine.as_mut());
        if progress == Progress::Over
            && let Some(execution) = self.in_flight.remove(slot)
        {
            let (used, end) = execution.finish();
            self.stage(used, end);
        }
        Ok(())
    }

    fn stage(&mut self, used: Used, end: Result<Traffic, Errno>) {
        if let Some(live) = &mut self.live {
            live.ring.complete(used.id, used.slots, used.written);
            self.is_staged = true;
        }
        self.batch.requests += 1;
        match end {
            Ok(Traffic::Read(bytes)) => self.batch.bytes_read += bytes,
            Ok(Traffic::Write(bytes)) => self.batch.bytes_written += bytes,
            Ok(Traffic::Other) => {}
            Err(_) => self.batch.errors += 1,
        }
    }

    /// End of a batch: the driver sees what was completed; at most one irq. The ring is still
    /// where the batch found it, since what was staged lies there; a newer generation is
    /// acknowledged between batches.
    pub(crate) fn publish(&mut self) -> Result<(), Stop> {
        self.engine.flush();
        // Before the driver sees the requests: who has seen one finds it counted.
        self.count();
        if let Some(live) = &mut self.live
            && (std::mem::take(&mut self.is_staged) | std::mem::take(&mut live.owes_publication))
        {
            live.check_poison()?;
            self.batch.batches += 1;
            if live.ring.publish() {
                self.batch.irqs += 1;
                self.irq.send(self.device.irq_sink.as_ref());
            } else {
                self.batch.irqs_suppressed += 1;
            }
            self.count();
        }
        Ok(())
    }

    fn count(&mut self) {
        self.counters.add(&std::mem::take(&mut self.batch));
        self.counters
            .in_flight
            .store(self.in_flight.len() as u64, Ordering::Relaxed);
    }

    /// Takes nothing more from now on.
    pub(crate) fn drain(&mut self) {
        self.is_draining = true;
    }

    /// The view's acknowledgement of a new generation. The ring follows when it is next used.
    pub(crate) fn acknowledge(&mut self) {
        if let Some(live) = &mut self.live {
            live.view.refresh();
        }
    }

    pub(crate) fn set_irq(&mut self, irq: Irq) {
        self.irq = irq;
        self.irq.send(self.device.irq_sink.as_ref());
    }

    /// Gives the queue up: guest memory is not touched any more except by what a direct
    /// backend has in hand, which is cancelled. `done` is dropped when that has ended.
    pub(crate) fn discard(&mut self, done: Option<Done>) {
        self.waiters.extend(done);
        if self.live.take().is_none() {
            return;
        }
        self.is_staged = false;
        self.handle.end(Outcome::Broken);
        let tokens: Vec<u32> = self.in_flight.iter().map(|(slot, _)| slot).collect();
        for slot in tokens {
            self.engine.cancel(self.id.token(slot));
        }
        if self.device.backend.info().kind == Kind::Detachable {
            self.in_flight = Slab::new();
        }
        self.engine.flush();
    }

    /// Stops the device. Memory taken away explains whatever else was found in it.
    pub(crate) fn stop(&mut self, why: Stop) {
        let poison = self.live.as_ref().map(Live::check_poison);
        let why = poison.and_then(Result::err).unwrap_or(why);
        self.device.set_broken(self.index, why.to_string());
        self.discard(None);
    }

    /// Whether the queue can leave its worker; tells its owner where it stands.
    pub(crate) fn is_over(&mut self) -> bool {
        if !self.in_flight.is_empty() {
            return false;
        }
        let Some(live) = &self.live else {
            return true;
        };
        let over = self.is_draining && live.ring.in_flight() == 0 && !self.is_staged;
        if over {
            self.handle.end(Outcome::Stopped(live.ring.state()));
        }
        over
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.counters.add(&self.batch);
        self.counters.in_flight.store(0, Ordering::Relaxed);
        self.handle.end(Outcome::Broken);
    }
}

fn chain_bytes(chain: &Chain) -> u64 {
    let segments = chain.readable.iter().chain(&chain.writable);
    segments.map(|segment| u64::from(segment.len)).sum()
}
