//! One virtqueue on its worker: moves chains between the ring and what serves them, in batches;
//! publishes once a batch, sends at most one irq a batch.

use crate::backend::{self, Completion, Local};
use crate::command::Done;
use crate::datapath::Device;
use crate::handle::{Handle, Outcome, QueueId};
use crate::irq::Irq;
use crate::live::{Live, Stop};
use crate::service::{Intake, Service};
use crate::stats::{Batch, Counters};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;
use vduse_ring::Chain;
use vduse_worker::Patience;

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

impl NewQueue {
    /// What will serve it, as `id` on the calling worker's thread.
    pub(crate) fn attach(
        &self,
        id: QueueId,
        local: &Local,
    ) -> Result<Box<dyn Service>, backend::Error> {
        let provider = &self.device.provider;
        provider.attach(id, self.index, self.features, local)
    }
}

/// What a look at a hot queue shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// A turn is due.
    Work,
    /// Nothing yet.
    Nothing,
    /// Nothing will come any more.
    Never,
}

/// A queue on its worker.
pub(crate) struct Queue {
    pub(crate) id: QueueId,
    pub(crate) device: Arc<Device>,
    index: u32,
    /// `None` once the queue was given up: requests in flight then end unseen.
    live: Option<Live>,
    service: Box<dyn Service>,
    kick: OwnedFd,
    irq: Irq,
    counters: Arc<Counters>,
    handle: Arc<Handle>,
    batch: Batch,
    is_draining: bool,
    /// The service has panicked: it is not asked for deadlines any more.
    has_panicked: bool,
    /// In the worker's list of hot queues.
    pub(crate) is_hot: bool,
    /// While it is hot.
    pub(crate) patience: Patience,
    /// As the worker knows it, of the service.
    pub(crate) deadline: Option<Instant>,
    /// It drains, is new, or its ring may be elsewhere: a turn is due whatever a look shows.
    must_turn: bool,
    /// Who waits for the end of a queue that was given up.
    waiters: Vec<Done>,
}

impl Queue {
    pub(crate) fn new(id: QueueId, new: NewQueue, service: Box<dyn Service>) -> Queue {
        Queue {
            id,
            device: new.device,
            index: new.index,
            live: Some(new.live),
            service,
            kick: new.kick,
            irq: new.irq,
            counters: new.counters,
            handle: new.handle,
            batch: Batch::default(),
            is_draining: false,
            has_panicked: false,
            is_hot: false,
            patience: Patience::default(),
            deadline: None,
            must_turn: true,
            waiters: Vec::new(),
        }
    }

    pub(crate) fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The fd that was watched before.
    pub(crate) fn set_kick(&mut self, kick: OwnedFd) -> OwnedFd {
        std::mem::replace(&mut self.kick, kick)
    }

    pub(crate) fn kicked(&mut self) {
        self.batch.stats.kicks += 1;
        // Otherwise a look tells: a kick may be for what was taken before it was seen.
        self.must_turn |= self.live.as_ref().is_some_and(|live| live.is_stale);
    }

    /// Looks at the ring, and touches nothing: a ring that is not used need not be mapped any
    /// more, so what it looks like is seen from where it was at the last turn.
    pub(crate) fn look(&self) -> Look {
        let Some(live) = &self.live else {
            return Look::Never;
        };
        if self.must_turn {
            return Look::Work;
        }
        // A drain takes what a predecessor had in flight, and nothing else.
        match self.is_draining {
            true if live.ring.recovered() == 0 => Look::Never,
            _ if live.ring.has_available() => Look::Work,
            _ => Look::Nothing,
        }
    }

    /// Takes one batch of chains, with kicks suppressed; whether there were any.
    pub(crate) fn turn(&mut self, chain: &mut Chain) -> Result<bool, Stop> {
        self.must_turn = false;
        let taken = self.take_batch(chain);
        if let Some(live) = &self.live {
            // What was read where memory was taken away means nothing, an error included.
            live.check_memory()?;
        }
        taken
    }

    fn take_batch(&mut self, chain: &mut Chain) -> Result<bool, Stop> {
        let Some(live) = &mut self.live else {
            return Ok(false);
        };
        live.refresh()?;
        if !self.is_draining {
            live.ring.suppress_kicks();
        }
        self.batch.begin();
        let mut intake = Intake::new(live, &mut self.batch, chain, self.is_draining);
        self.service.take(&mut intake)?;
        let has_taken = intake.has_taken();
        self.service.flush();
        Ok(has_taken)
    }

    /// Asks for kicks where the ring was at the last turn; whether there is work.
    pub(crate) fn arm(&mut self) -> Result<bool, Stop> {
        let Some(live) = &mut self.live else {
            return Ok(false);
        };
        if !self.must_turn {
            live.ring.enable_kicks();
        }
        live.check_memory()?;
        Ok(self.look() == Look::Work)
    }

    /// Shows a completion to the service before it is delivered.
    pub(crate) fn completed(&mut self, completion: &mut Completion) {
        self.service.completed(completion);
    }

    /// When [`Queue::expire`] is to be called, if at all.
    pub(crate) fn service_deadline(&self) -> Option<Instant> {
        match self.has_panicked {
            true => None,
            false => self.service.deadline(),
        }
    }

    /// The service's deadline has passed; what ends by that goes into `ended`.
    pub(crate) fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        self.service.expire(now, ended);
        self.service.flush();
    }

    /// Takes the completion of an operation of the request in `slot`.
    pub(crate) fn deliver(&mut self, slot: u32, completion: Completion) -> Result<(), Stop> {
        let Some(live) = &mut self.live else {
            // Given up: nothing of it reaches guest memory, nothing more is started.
            self.service.abandon(slot);
            return Ok(());
        };
        if !live.is_staged {
            // A batch of completions begins.
            live.refresh()?;
        }
        self.service
            .deliver(slot, completion, live, &mut self.batch);
        Ok(())
    }

    /// End of a batch: the driver sees what was completed; at most one irq. The ring is still
    /// where the batch found it, since what was staged lies there; a newer generation is
    /// acknowledged between batches.
    pub(crate) fn publish(&mut self) -> Result<(), Stop> {
        self.service.flush();
        if self.live.is_none() {
            return Ok(());
        }
        for failure in self.batch.failures.drain(..) {
            self.device.failed(self.index, &failure);
        }
        // Before the driver sees the requests: who has seen one finds it counted.
        self.counters.end(&mut self.batch);
        self.count();
        if let Some(live) = &mut self.live
            && (std::mem::take(&mut live.is_staged) | std::mem::take(&mut live.owes_publication))
        {
            live.check_memory()?;
            self.batch.stats.batches += 1;
            if live.ring.publish() {
                self.batch.stats.irqs += 1;
                self.irq.send(self.device.irq_sink.as_ref());
            } else {
                self.batch.stats.irqs_suppressed += 1;
            }
            self.count();
        }
        Ok(())
    }

    fn count(&mut self) {
        self.counters.add(&mut self.batch);
        self.counters.set_in_flight(self.service.in_flight());
    }

    /// Takes nothing more from now on; a turn tells the service. The ring is left asking for
    /// kicks, for whoever goes on with it.
    pub(crate) fn drain(&mut self) {
        self.is_draining = true;
        self.must_turn = true;
        if self.is_hot
            && let Some(live) = &mut self.live
        {
            live.ring.enable_kicks();
        }
    }

    /// The view's acknowledgement of a new generation. The ring follows when it is next used:
    /// at once if there is work.
    pub(crate) fn acknowledge(&mut self, has_work: bool) {
        self.must_turn |= has_work;
        if let Some(live) = &mut self.live {
            live.acknowledge();
        }
    }

    pub(crate) fn set_irq(&mut self, irq: Irq) {
        self.irq = irq;
        self.irq.send(self.device.irq_sink.as_ref());
    }

    /// Gives the queue up: guest memory is not touched any more except by what the service
    /// cannot let go of at once. `done` is dropped when that has ended. Returns when
    /// [`Queue::expire`] is to be called, if at all.
    pub(crate) fn discard(&mut self, done: Option<Done>) -> Option<Instant> {
        self.waiters.extend(done);
        let ending = AssertUnwindSafe(|| {
            self.give_up();
            self.service_deadline()
        });
        catch_unwind(ending).unwrap_or_else(|_| {
            self.has_panicked = true;
            None
        })
    }

    fn give_up(&mut self) {
        if self.live.take().is_none() {
            return;
        }
        // From here on the counters belong to the queue's next run.
        self.counters.add(&mut self.batch);
        self.counters.set_in_flight(0);
        self.handle.end(Outcome::Broken);
        self.service.discard();
    }

    /// Stops the device. Memory taken away explains whatever else was found in it.
    pub(crate) fn stop(&mut self, why: Stop) {
        self.has_panicked |= matches!(why, Stop::Panic);
        let taken_away = self.live.as_ref().map(Live::check_memory);
        let why = taken_away.and_then(Result::err).unwrap_or(why);
        self.device.set_broken(self.index, why.to_string());
        self.discard(None);
    }

    /// Whether the queue can leave its worker; tells its owner where it stands.
    pub(crate) fn is_over(&mut self) -> bool {
        if self.service.in_flight() > 0 {
            return false;
        }
        let Some(live) = &self.live else {
            return true;
        };
        if !self.is_draining || live.ring.in_flight() > 0 || live.is_staged {
            return false;
        }
        let state = live.ring.state();
        self.count(); // the counters belong to the queue's next run from here on
        self.handle.end(Outcome::Stopped(state));
        true
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.live.is_some() && self.handle.outcome().is_none() {
            self.count();
        }
        self.handle.end(Outcome::Broken);
    }
}
