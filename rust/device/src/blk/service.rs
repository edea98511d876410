//! Serves a virtqueue of a disk: parses each chain, carries it out on the backend's engine.

use super::{Disk, Execution, Parsed, Progress, Request, Rules, Traffic, parse};
use crate::backend::{Backend, Completion, Engine, Info, Kind};
use crate::handle::QueueId;
use crate::live::{Live, Stop};
use crate::service::{Intake, Service};
use crate::slab::Slab;
use crate::stats::Batch;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use vduse_ring::Segments;

/// So many discarded or zeroed bytes take a backend in memory as long as one that is copied.
const RANGE_BYTES: u64 = 256;

/// A request in flight.
struct Pending {
    execution: Execution,
    /// When it was taken.
    taken: Instant,
    writable: Segments,
}

/// The requests of one virtqueue.
pub(super) struct BlkService {
    id: QueueId,
    disk: Arc<Disk>,
    features: u64,
    /// What the engine is of.
    backend: Arc<dyn Backend>,
    engine: Box<dyn Engine>,
    in_flight: Slab<Pending>,
}

impl BlkService {
    pub(super) fn new(
        id: QueueId,
        disk: Arc<Disk>,
        features: u64,
        backend: Arc<dyn Backend>,
        engine: Box<dyn Engine>,
    ) -> BlkService {
        BlkService {
            id,
            disk,
            features,
            backend,
            engine,
            in_flight: Slab::new(),
        }
    }

    fn start(
        &mut self,
        request: Request,
        writable: &Segments,
        info: &Info,
        live: &mut Live,
        batch: &mut Batch,
    ) {
        let slot = self.in_flight.next_key();
        let token = self.id.token(slot);
        let engine = self.engine.as_mut();
        match Execution::start(request, &self.disk.serial, info, engine, token) {
            (execution, Progress::Over) => {
                let end = complete(execution, writable, live, batch);
                batch.end_now(end);
            }
            (execution, Progress::Pending) => {
                let kept = self.in_flight.insert(Pending {
                    execution,
                    taken: batch.taken(),
                    writable: Segments::from_slice(writable),
                });
                debug_assert_eq!(kept, slot);
            }
        }
    }
}

/// Ends a request towards the driver; how it ended.
fn complete(
    execution: Execution,
    writable: &Segments,
    live: &mut Live,
    batch: &mut Batch,
) -> Result<Traffic, Errno> {
    let (used, end) = execution.finish();
    live.complete(used.id, used.slots, used.written, writable);
    end.map_err(|failure| {
        // What a backend cannot do the driver has asked for without need.
        if !matches!(failure.errno, Errno::OPNOTSUPP | Errno::CANCELED) {
            batch.note(failure);
        }
        failure.errno
    })
}

impl Service for BlkService {
    fn take(&mut self, intake: &mut Intake<'_>) -> Result<(), Stop> {
        let info = self.backend.info();
        let rules = Rules {
            limits: self.disk.limits,
            features: self.features,
            capacity: self.disk.capacity.load(Ordering::Relaxed),
            read_only: info.read_only || self.disk.limits.read_only,
        };
        while intake.pop()? {
            let (live, batch) = (&mut *intake.live, &mut intake.out.batch);
            let writable = &intake.chain.writable;
            match parse(intake.chain, &mut live.view, &rules).map_err(Stop::Status)? {
                Parsed::Short => {
                    live.complete(intake.chain.id, intake.chain.slots, 0, writable);
                    batch.end_now(Err(Errno::INVAL));
                }
                Parsed::Refuse(finish, status) => {
                    let used = finish.refuse(status);
                    live.complete(used.id, used.slots, used.written, writable);
                    batch.end_now(Err(Errno::INVAL));
                }
                Parsed::Run(request) => {
                    let charge = request.range_bytes() / RANGE_BYTES;
                    self.start(request, writable, &info, live, batch);
                    intake.charge(charge);
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, slot: u32, completion: Completion, live: &mut Live, batch: &mut Batch) {
        let Some(pending) = self.in_flight.get_mut(slot) else {
            return;
        };
        let info = self.backend.info();
        let engine = self.engine.as_mut();
        let progress = pending.execution.complete(completion, &info, engine);
        if progress == Progress::Over
            && let Some(over) = self.in_flight.remove(slot)
        {
            let end = complete(over.execution, &over.writable, live, batch);
            batch.end(over.taken, end);
        }
    }

    fn flush(&mut self) {
        self.engine.flush();
    }

    /// A direct backend has guest memory in hand: it is asked to cancel, and waited for.
    fn discard(&mut self) {
        let slots: Vec<u32> = self.in_flight.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.engine.cancel(self.id.token(slot));
        }
        if self.backend.info().kind == Kind::Detachable {
            self.in_flight = Slab::new();
        }
        self.engine.flush();
    }

    fn abandon(&mut self, slot: u32) {
        if let Some(pending) = self.in_flight.get_mut(slot)
            && pending.execution.abandon_one()
        {
            self.in_flight.remove(slot);
        }
    }

    fn completed(&mut self, completion: &mut Completion) {
        self.engine.completed(completion);
    }

    fn deadline(&self) -> Option<Instant> {
        self.engine.deadline()
    }

    fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        self.engine.expire(now, ended);
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn oldest(&self) -> Option<Instant> {
        self.in_flight.iter().map(|(_, it)| it.taken).min()
    }
}
