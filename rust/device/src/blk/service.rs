//! Serves a virtqueue of a disk: parses each chain, carries it out on the backend's engine.

use super::{Disk, Execution, Parsed, Progress, Request, Rules, Traffic, Used, parse};
use crate::backend::{Completion, Engine, Info, Kind};
use crate::handle::QueueId;
use crate::live::{Live, Stop};
use crate::service::{Intake, Service};
use crate::slab::Slab;
use crate::stats::Stats;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The requests of one virtqueue.
pub(super) struct BlkService {
    id: QueueId,
    disk: Arc<Disk>,
    features: u64,
    engine: Box<dyn Engine>,
    in_flight: Slab<Execution>,
}

impl BlkService {
    pub(super) fn new(
        id: QueueId,
        disk: Arc<Disk>,
        features: u64,
        engine: Box<dyn Engine>,
    ) -> BlkService {
        BlkService {
            id,
            disk,
            features,
            engine,
            in_flight: Slab::new(),
        }
    }

    fn start(&mut self, request: Request, info: &Info, live: &mut Live, stats: &mut Stats) {
        let slot = self.in_flight.next_key();
        let token = self.id.token(slot);
        let engine = self.engine.as_mut();
        match Execution::start(request, &self.disk.serial, info, engine, token) {
            (execution, Progress::Over) => {
                let (used, end) = execution.finish();
                end_request(used, end, live, stats);
            }
            (execution, Progress::Pending) => {
                let kept = self.in_flight.insert(execution);
                debug_assert_eq!(kept, slot);
            }
        }
    }
}

impl Service for BlkService {
    fn take(&mut self, intake: &mut Intake<'_>) -> Result<(), Stop> {
        let info = self.disk.backend.info();
        let rules = Rules {
            limits: self.disk.limits,
            features: self.features,
            capacity: self.disk.capacity.load(Ordering::Relaxed),
            read_only: info.read_only || self.disk.limits.read_only,
        };
        while intake.pop()? {
            let (live, stats) = (&mut *intake.live, &mut *intake.stats);
            match parse(intake.chain, &mut live.view, &rules).map_err(Stop::Status)? {
                Parsed::Short => {
                    let used = Used {
                        id: intake.chain.id,
                        slots: intake.chain.slots,
                        written: 0,
                    };
                    end_request(used, Err(Errno::INVAL), live, stats);
                }
                Parsed::Refuse(finish, status) => {
                    end_request(finish.refuse(status), Err(Errno::INVAL), live, stats);
                }
                Parsed::Run(request) => self.start(request, &info, live, stats),
            }
        }
        Ok(())
    }

    fn deliver(&mut self, slot: u32, completion: Completion, live: &mut Live, stats: &mut Stats) {
        let Some(execution) = self.in_flight.get_mut(slot) else {
            return;
        };
        let info = self.disk.backend.info();
        let progress = execution.complete(completion, &info, self.engine.as_mut());
        if progress == Progress::Over
            && let Some(execution) = self.in_flight.remove(slot)
        {
            let (used, end) = execution.finish();
            end_request(used, end, live, stats);
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
        if self.disk.backend.info().kind == Kind::Detachable {
            self.in_flight = Slab::new();
        }
        self.engine.flush();
    }

    fn abandon(&mut self, slot: u32) {
        if let Some(execution) = self.in_flight.get_mut(slot)
            && execution.abandon_one()
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
}

fn end_request(used: Used, end: Result<Traffic, Errno>, live: &mut Live, stats: &mut Stats) {
    live.complete(used.id, used.slots, used.written);
    stats.requests += 1;
    match end {
        Ok(Traffic::Read(bytes)) => stats.bytes_read += bytes,
        Ok(Traffic::Write(bytes)) => stats.bytes_written += bytes,
        Ok(Traffic::Other) => {}
        Err(_) => stats.errors += 1,
    }
}
