//! One virtqueue on its worker: moves chains between the ring and what serves them, in batches.

use crate::backend::{self, Completion, Local};
use crate::command::Done;
use crate::datapath::Device;
use crate::handle::{Handle, Outcome, QueueId};
use crate::irq::Irq;
use crate::live::{Live, Stop};
use crate::pause::Pause;
use crate::publisher::Publisher;
use crate::service::{Idle, Intake, Service};
use crate::stats::{Age, Batch, Counters};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{SendError, Sender};
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
    /// What will serve it, as `id` on the calling worker's thread; `None` while its device is
    /// paused.
    pub(crate) fn attach(
        &self,
        id: QueueId,
        local: &Local,
    ) -> Result<Option<Box<dyn Service>>, backend::Error> {
        if self.device.is_paused() {
            return Ok(None);
        }
        let provider = &self.device.provider;
        let service = provider.attach(id, self.index, self.features, local)?;
        Ok(Some(service))
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
    /// `None` once the queue was given up: requests in flight then end unseen.
    live: Option<Live>,
    service: Box<dyn Service>,
    pause: Pause,
    /// Negotiated feature bits.
    features: u64,
    kick: OwnedFd,
    out: Publisher,
    handle: Arc<Handle>,
    /// Of the requests in flight.
    age: Age,
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
    /// Without a `service` it begins paused.
    pub(crate) fn new(id: QueueId, new: NewQueue, service: Option<Box<dyn Service>>) -> Queue {
        let mut batch = Batch::default();
        batch.stats.resubmitted = new.live.ring.recovered().into();
        Queue {
            id,
            live: Some(new.live),
            pause: match service {
                Some(_) => Pause::No,
                None => Pause::Complete,
            },
            service: service.unwrap_or_else(|| Box::new(Idle)),
            features: new.features,
            kick: new.kick,
            out: Publisher {
                device: new.device,
                index: new.index,
                irq: new.irq,
                counters: new.counters,
                batch,
            },
            handle: new.handle,
            age: Age::default(),
            is_draining: false,
            has_panicked: false,
            is_hot: false,
            patience: Patience::default(),
            deadline: None,
            must_turn: true,
            waiters: Vec::new(),
        }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.out.device
    }

    pub(crate) fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The fd that was watched before.
    pub(crate) fn set_kick(&mut self, kick: OwnedFd) -> OwnedFd {
        std::mem::replace(&mut self.kick, kick)
    }

    pub(crate) fn kicked(&mut self) {
        self.out.batch.stats.kicks += 1;
        // Otherwise a look tells: a kick may be for what was taken before it was seen.
        self.must_turn |= self.live.as_ref().is_some_and(|live| live.is_stale);
    }

    /// Looks at the ring, and touches nothing: a ring that is not used need not be mapped any
    /// more, so what it looks like is seen from where it was at the last turn.
    pub(crate) fn look(&self) -> Look {
        let Some(live) = &self.live else {
            return Look::Never;
        };
        if !matches!(self.pause, Pause::No) {
            return Look::Never;
        }
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
        self.out.batch.begin();
        let mut intake = Intake::new(live, &mut self.out, chain, self.is_draining);
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
            .deliver(slot, completion, live, &mut self.out.batch);
        Ok(())
    }

    /// End of a batch: the driver sees what was completed since [`Intake`] published last.
    pub(crate) fn publish(&mut self) -> Result<(), Stop> {
        self.service.flush();
        if let Some(live) = &mut self.live {
            self.out.publish(live)?;
            self.count();
        }
        Ok(())
    }

    fn count(&mut self) {
        self.out.counters.add(&mut self.out.batch);
        let service = &*self.service;
        self.out.counters.set_in_flight(
            service.in_flight(),
            &mut self.age,
            self.out.batch.clock(),
            || service.oldest(),
        );
    }

    /// Takes nothing more from now on; a turn tells the service. The ring is left asking for
    /// kicks, for whoever goes on with it.
    pub(crate) fn drain(&mut self) {
        self.is_draining = true;
        self.must_turn = true;
        self.ask_for_kicks();
    }

    fn ask_for_kicks(&mut self) {
        if self.is_hot
            && let Some(live) = &mut self.live
        {
            live.ring.enable_kicks();
        }
    }

    /// Takes nothing more until it is resumed; requests that come stay in the ring. `done` is
    /// dropped once nothing is in flight, see [`Queue::rest`].
    pub(crate) fn pause(&mut self, done: Done) {
        self.ask_for_kicks();
        self.pause.begin(done);
    }

    /// Lets go of what serves it, if it is to and nothing is in flight; whether it has.
    pub(crate) fn rest(&mut self) -> bool {
        let Pause::Begun(_) = self.pause else {
            return false;
        };
        let is_staged = self.live.as_ref().is_some_and(|live| live.is_staged);
        if is_staged || self.service.in_flight() > 0 {
            return false;
        }
        let service = std::mem::replace(&mut self.service, Box::new(Idle));
        // A panic in a backend's end is nobody else's.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(service)));
        self.pause = Pause::Complete;
        true
    }

    /// Whether it has let go of what served it: [`Queue::resume`] needs another.
    pub(crate) fn is_at_rest(&self) -> bool {
        matches!(self.pause, Pause::Complete)
    }

    /// What is to serve it from now on, on the calling worker's thread.
    pub(crate) fn attach(&self, local: &Local) -> Result<Box<dyn Service>, backend::Error> {
        let provider = &self.device().provider;
        provider.attach(self.id, self.out.index, self.features, local)
    }

    /// What serves it cannot be had; where nobody waits for that, the device is broken.
    pub(crate) fn cannot_resume(&self, error: backend::Error, failed: &Sender<backend::Error>) {
        if let Err(SendError(error)) = failed.send(error) {
            let message = format!("cannot go on: {error}");
            self.out.device.set_broken(self.out.index, message);
        }
    }

    /// Goes on, with `service` where it has let go of its own.
    pub(crate) fn resume(&mut self, service: Option<Box<dyn Service>>) {
        if let Some(service) = service {
            self.service = service;
        }
        self.pause = Pause::No;
        self.must_turn = true;
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
        self.out.irq = irq;
        self.out.signal();
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
        self.out.counters.add(&mut self.out.batch);
        self.out.counters.end_in_flight();
        self.handle.end(Outcome::Broken);
        self.service.discard();
    }

    /// Stops the device. Memory taken away explains whatever else was found in it.
    pub(crate) fn stop(&mut self, why: Stop) {
        self.has_panicked |= matches!(why, Stop::Panic);
        let taken_away = self.live.as_ref().map(Live::check_memory);
        let why = taken_away.and_then(Result::err).unwrap_or(why);
        self.out.device.set_broken(self.out.index, why.to_string());
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
