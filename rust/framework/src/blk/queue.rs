//! One queue's requests: from jobs to virtio-blk requests on the ring, and back. Everything here
//! runs under the queue's lock, and never waits.

mod renewal;

use super::driver::Ending;
use super::jobs::{Client, Job, Outcome, Slab};
use super::limits::Limits;
use super::request::{ID_BYTES, Kind};
use super::slots::Slots;
use super::{BlkStats, Hold, SetupError};
use crate::{Coherent, Direction, Dma, DmaError, Mapping, VqLine};
use rustix::io::Errno;
use smallvec::{SmallVec, smallvec};
use std::collections::VecDeque;
use std::sync::Arc;
use vduse_histogram::{Counts, Histogram};
use vduse_mem::Iova;
use vduse_ring::{AddError, Areas, DriverQueue, Layout, Segment};

/// Status bytes (virtio 1.3, section 5.2.6).
const S_OK: u8 = 0;
const S_UNSUPP: u8 = 2;

/// A virtio-blk request that the device has.
#[derive(Debug)]
struct Part {
    job: u32,
    mapping: Option<Mapping>,
    /// First byte of the job.
    start: u64,
    bytes: u64,
}

/// Why a job's next part was not issued.
enum Stall {
    /// Ring or address space are full: later.
    Full,
    /// The job cannot go on.
    Failed(Errno),
}

/// What a look at the ring has brought.
pub(super) struct Pumped {
    /// Completions were taken.
    pub(super) took: bool,
    /// The device was given up.
    pub(super) gave_up: bool,
}

pub(super) struct QueueCore {
    dma: Arc<dyn Dma>,
    line: Arc<VqLine>,
    ending: Arc<Ending>,
    limits: Limits,
    layout: Layout,
    hold: Hold,
    ring: DriverQueue,
    slots: Slots,
    /// By slot.
    parts: Box<[Option<Part>]>,
    jobs: Slab<Job>,
    clients: Slab<Client>,
    /// Jobs with parts to issue, oldest first.
    backlog: VecDeque<u32>,
    /// Parts that a device which was reset has not answered; they go before the backlog.
    again: VecDeque<renewal::Again>,
    /// Requests in the ring that were not published.
    staged: u64,
    /// Mappings that the device may still use although their jobs have ended.
    held: Vec<Mapping>,
    /// Jobs of any client have ended since this was last taken.
    progress: bool,
    /// Coherent memory: rings, tables, slots.
    memory: Vec<Coherent>,
    areas: [Iova; 3],
    stats: BlkStats,
    /// Requests of each publication; made with the first one.
    batch_requests: Option<Box<Histogram<3>>>,
}

impl QueueCore {
    /// A queue in fresh coherent memory.
    pub(super) fn new(
        dma: &Arc<dyn Dma>,
        line: &Arc<VqLine>,
        ending: &Arc<Ending>,
        limits: Limits,
        layout: Layout,
    ) -> Result<QueueCore, SetupError> {
        layout.check().map_err(vduse_ring::RingError::from)?;
        let mut memory = Vec::with_capacity(5);
        match QueueCore::build(dma, &layout, &mut memory) {
            Ok((ring, slots)) => Ok(QueueCore {
                dma: Arc::clone(dma),
                line: Arc::clone(line),
                ending: Arc::clone(ending),
                limits,
                layout,
                hold: Hold::default(),
                ring,
                slots,
                parts: (0..layout.size).map(|_| None).collect(),
                jobs: Slab::default(),
                clients: Slab::default(),
                backlog: VecDeque::new(),
                again: VecDeque::new(),
                staged: 0,
                held: Vec::new(),
                progress: false,
                areas: [memory[0].iova, memory[1].iova, memory[2].iova],
                memory,
                stats: BlkStats::default(),
                batch_requests: None,
            }),
            Err(error) => {
                memory.drain(..).for_each(|area| dma.free_coherent(area));
                Err(error)
            }
        }
    }

    /// Ring and slots; what was allocated is in `memory`, the three areas first.
    fn build(
        dma: &Arc<dyn Dma>,
        layout: &Layout,
        memory: &mut Vec<Coherent>,
    ) -> Result<(DriverQueue, Slots), SetupError> {
        for bytes in layout.area_sizes() {
            memory.push(dma.alloc_coherent(bytes)?);
        }
        let areas = Areas {
            desc: memory[0].memory.clone(),
            driver: memory[1].memory.clone(),
            device: memory[2].memory.clone(),
        };
        let tables = if layout.indirect {
            let bytes = u64::from(layout.size) * DriverQueue::INDIRECT_SEGMENTS as u64 * 16;
            memory.push(dma.alloc_coherent(bytes)?);
            memory
                .last()
                .map(|tables| (tables.memory.clone(), tables.iova))
        } else {
            None
        };
        let mut ring = DriverQueue::new(*layout, areas, tables)?;
        ring.suppress_irqs();
        let slots = Slots::new(&**dma, layout.size)?;
        memory.push(slots.memory());
        Ok((ring, slots))
    }

    pub(super) fn areas(&self) -> [Iova; 3] {
        self.areas
    }

    pub(super) fn stats(&self) -> BlkStats {
        self.stats
    }

    /// Requests of each publication.
    pub(super) fn batch_requests(&self) -> Counts {
        let batches = self.batch_requests.as_ref();
        batches.map(|batches| batches.counts()).unwrap_or_default()
    }

    pub(super) fn clients(&mut self) -> &mut Slab<Client> {
        &mut self.clients
    }

    /// Requests that the device has.
    pub(super) fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Whether jobs wait for ring or address space.
    pub(super) fn is_stalled(&self) -> bool {
        !self.hold.submissions && self.has_backlog()
    }

    fn has_backlog(&self) -> bool {
        !self.again.is_empty() || !self.backlog.is_empty()
    }

    /// Whether any job has ended since the last call.
    pub(super) fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }

    /// Before sleeping: irqs on; true if a completion is there already.
    pub(super) fn enable_irqs(&mut self) -> bool {
        !self.hold.completions && self.ring.enable_irqs()
    }

    /// After sleeping: irqs off.
    pub(super) fn suppress_irqs(&mut self) {
        self.ring.suppress_irqs();
    }

    /// Irqs taken from the line.
    pub(super) fn count_irqs(&mut self, irqs: u64) {
        self.stats.irqs += irqs;
    }

    /// Takes on a job, issuing what fits now. A job with nothing to do ends at once, and so does
    /// any after the driver has ended.
    pub(super) fn take(&mut self, mut job: Job, needed: bool) {
        let client = job.client.and_then(|client| self.clients.get_mut(client));
        if let Some(client) = client {
            client.outstanding += 1;
        }
        let ending = self.ending.errno();
        if let Some(errno) = ending {
            job.close(errno);
        }
        let index = self.jobs.insert(job);
        if ending.is_some() || !needed {
            self.finish(index);
            return;
        }
        self.backlog.push_back(index);
        if self.backlog.len() == 1 {
            self.issue_backlog();
        }
    }

    /// Outcomes for a client's next look.
    pub(super) fn put_back(&mut self, client: u32, ended: &mut Vec<(u64, Outcome)>) {
        if let Some(client) = self.clients.get_mut(client) {
            client.outstanding += ended.len();
            client.finished.append(ended);
            self.progress = true;
        }
    }

    /// Publishes what is staged.
    pub(super) fn publish(&mut self) {
        if self.hold.submissions {
            return;
        }
        let requests = std::mem::take(&mut self.staged);
        if requests == 0 {
            return;
        }
        let batches = self.batch_requests.get_or_insert_default();
        batches.record(requests, 1);
        if self.ring.publish() {
            self.stats.kicks += 1;
            self.line.kick();
        } else {
            self.stats.kicks_suppressed += 1;
        }
    }

    /// Takes completions and issues what they made room for. The ring is left alone once the
    /// device was stopped or given up.
    pub(super) fn pump(&mut self) -> Pumped {
        let mut pumped = Pumped {
            took: false,
            gave_up: false,
        };
        if self.ending.errno().is_some() {
            self.fail_all();
            return pumped;
        }
        if self.hold.completions {
            return pumped;
        }
        loop {
            match self.ring.pop_used() {
                Ok(Some((slot, _written))) => {
                    self.complete(slot);
                    pumped.took = true;
                }
                Ok(None) => break,
                Err(error) => {
                    self.give_up(error.to_string());
                    pumped.gave_up = true;
                    return pumped;
                }
            }
        }
        if !pumped.took && self.ring.in_flight() > 0 && self.slots.is_poisoned() {
            self.give_up("the memory of the rings was taken away".to_string());
            pumped.gave_up = true;
            return pumped;
        }
        if self.is_stalled() {
            self.issue_backlog();
            self.publish();
        }
        pumped
    }

    /// Ends every job with the errno that the driver ended with. What the device may still use
    /// is held until [`QueueCore::release`].
    pub(super) fn fail_all(&mut self) {
        let Some(errno) = self.ending.errno() else {
            return;
        };
        for part in self.parts.iter_mut().filter_map(Option::take) {
            self.held.extend(part.mapping);
        }
        self.backlog.clear();
        self.again.clear();
        self.staged = 0;
        let open: Vec<u32> = self
            .jobs
            .iter_mut()
            .map(|(index, job)| {
                job.close(errno);
                index
            })
            .collect();
        open.into_iter().for_each(|index| self.finish(index));
    }

    /// After a reset: the device uses nothing any more.
    pub(super) fn release(&mut self) {
        for mapping in self.held.drain(..) {
            // Nothing is copied; memory that was taken away is no news after a reset.
            let _ = self.dma.unmap(mapping, false);
        }
    }

    /// Gives rings and slots back; nothing may be in flight.
    pub(super) fn free_memory(&mut self) {
        for memory in self.memory.drain(..) {
            self.dma.free_coherent(memory);
        }
    }

    /// Lets go of all of a client's buffers: what was issued goes on without them.
    pub(super) fn remove_client(&mut self, client: u32) {
        self.clients.remove(client);
        let mut over = Vec::new();
        for (index, job) in self.jobs.iter_mut() {
            if job.client == Some(client) {
                job.client = None;
                job.buffer = None;
                job.close(Errno::CANCELED);
                over.extend(job.is_over().then_some(index));
            }
        }
        self.backlog.retain(|index| !over.contains(index));
        over.into_iter().for_each(|index| self.finish(index));
    }

    fn give_up(&mut self, why: String) {
        self.ending.fail(why);
        self.fail_all();
    }

    fn issue_backlog(&mut self) {
        if self.hold.submissions || !self.issue_again() {
            return;
        }
        while let Some(&index) = self.backlog.front() {
            while self.jobs.get_mut(index).is_some_and(|job| !job.closed) {
                match self.issue_part(index) {
                    Ok(()) => {}
                    Err(Stall::Full) => return,
                    Err(Stall::Failed(errno)) => {
                        if let Some(job) = self.jobs.get_mut(index) {
                            job.close(errno);
                        }
                    }
                }
            }
            self.backlog.pop_front();
            if self.jobs.get_mut(index).is_some_and(|job| job.is_over()) {
                self.finish(index);
            }
        }
    }

    /// Puts the job's next part on the ring.
    fn issue_part(&mut self, index: u32) -> Result<(), Stall> {
        let job = self.jobs.get_mut(index).ok_or(Stall::Failed(Errno::IO))?;
        let start = job.issued;
        let bytes = self.limits.part(job.kind, job.total - start);
        self.put(index, start, bytes)?;
        if let Some(job) = self.jobs.get_mut(index) {
            job.issued += bytes;
            job.in_flight += 1;
            job.closed = job.issued == job.total;
        }
        Ok(())
    }

    /// Puts `bytes` of a job from its byte `start` on the ring.
    fn put(&mut self, index: u32, start: u64, bytes: u64) -> Result<(), Stall> {
        let job = self.jobs.get_mut(index).ok_or(Stall::Failed(Errno::IO))?;
        let moving = matches!(job.kind, Kind::Read | Kind::Write);
        let descriptors = match job.kind {
            Kind::Flush => 2,
            Kind::Read | Kind::Write => self.limits.descriptors(bytes),
            Kind::Discard | Kind::WriteZeroes { .. } | Kind::GetId => 3,
        };
        if !self.ring.has_room(descriptors) {
            // An empty ring has room for whatever the limits allow, or never.
            return Err(match self.ring.in_flight() {
                0 => Stall::Failed(Errno::IO),
                _ => Stall::Full,
            });
        }
        let mapping = if moving {
            let direction = match job.kind {
                Kind::Read => Direction::FromDevice,
                _ => Direction::ToDevice,
            };
            let buffer = job.buffer.as_ref();
            let part = buffer.and_then(|buffer| buffer.part(start as usize, bytes as usize));
            let part = part.ok_or(Stall::Failed(Errno::IO))?;
            Some(self.dma.map(part, direction).map_err(|error| match error {
                DmaError::NoSpace => Stall::Full,
                DmaError::Length(_) | DmaError::Memory(_) => Stall::Failed(Errno::IO),
            })?)
        } else {
            None
        };
        let Some(slot) = self.slots.take() else {
            return Err(self.undo(mapping, None, Stall::Full));
        };
        let sector = (job.start + start) / super::Sectors::SIZE;
        self.slots.fill(slot, job.kind, sector, bytes);
        let (readable, writable) = chain(&self.limits, &self.slots, slot, job.kind, &mapping);
        match self.ring.add(&readable, &writable, slot) {
            Ok(()) => {}
            Err(AddError::Full) => return Err(self.undo(mapping, Some(slot), Stall::Full)),
            Err(AddError::TooLarge(_)) => {
                return Err(self.undo(mapping, Some(slot), Stall::Failed(Errno::IO)));
            }
        }
        self.parts[slot as usize] = Some(Part {
            job: index,
            mapping,
            start,
            bytes,
        });
        self.staged += 1;
        self.stats.requests += 1;
        Ok(())
    }

    /// Takes back what a part that was not issued had.
    fn undo(&mut self, mapping: Option<Mapping>, slot: Option<u32>, stall: Stall) -> Stall {
        if let Some(mapping) = mapping {
            // The device never saw it.
            let _ = self.dma.unmap(mapping, false);
        }
        if let Some(slot) = slot {
            self.slots.give(slot);
        }
        stall
    }

    /// The device has used `slot`, a token the ring checked.
    fn complete(&mut self, slot: u32) {
        let Some(part) = self.parts.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        let mut outcome = match self.slots.status(slot) {
            S_OK => Ok(part.bytes),
            S_UNSUPP => Err(Errno::OPNOTSUPP),
            _ => Err(Errno::IO),
        };
        let id = self.slots.id(slot);
        self.slots.give(slot);
        if let Some(mapping) = part.mapping {
            let job = self.jobs.get_mut(part.job);
            let wanted = job.is_some_and(|job| job.buffer.is_some());
            if self.dma.unmap(mapping, outcome.is_ok() && wanted).is_err() {
                outcome = Err(Errno::IO);
            }
        }
        let Some(job) = self.jobs.get_mut(part.job) else {
            return;
        };
        match outcome {
            Ok(bytes) => match job.kind {
                Kind::Read => self.stats.bytes_read += bytes,
                Kind::Write => self.stats.bytes_written += bytes,
                Kind::GetId => job.store_id(&id),
                Kind::Flush | Kind::Discard | Kind::WriteZeroes { .. } => {}
            },
            Err(_) => self.stats.errors += 1,
        }
        self.part_ended(part.job, outcome.err());
    }

    /// The device has one part of a job less.
    fn part_ended(&mut self, index: u32, error: Option<Errno>) {
        let Some(job) = self.jobs.get_mut(index) else {
            return;
        };
        job.in_flight -= 1;
        if let Some(errno) = error {
            job.close(errno);
        }
        // A closed job may still be at the head of the backlog; it ends there.
        if job.is_over() && self.backlog.front() != Some(&index) {
            self.finish(index);
        }
    }

    /// A job has ended: its outcome goes to its client.
    fn finish(&mut self, index: u32) {
        let Some(job) = self.jobs.remove(index) else {
            return;
        };
        self.progress = true;
        let client = job.client.and_then(|client| self.clients.get_mut(client));
        if let Some(client) = client {
            let outcome: Outcome = match job.error {
                None => Ok(job.total),
                Some(errno) => Err(errno),
            };
            client.finished.push((job.token, outcome));
        }
    }
}

impl Job {
    /// The serial goes to the program's buffer.
    fn store_id(&mut self, id: &[u8; ID_BYTES]) {
        if let Some(buffer) = self
            .buffer
            .as_ref()
            .filter(|buffer| buffer.len() >= ID_BYTES)
        {
            // SAFETY: the buffer has that many bytes, and its maker answers for them until the
            // job ends, which is after this.
            unsafe {
                std::ptr::copy_nonoverlapping(id.as_ptr(), buffer.as_ptr().as_ptr(), ID_BYTES)
            };
        }
    }
}

type Chain = (SmallVec<[Segment; 4]>, SmallVec<[Segment; 4]>);

/// The descriptors of one request, device-readable and device-writable (virtio 1.3, section
/// 5.2.6).
fn chain(
    limits: &Limits,
    slots: &Slots,
    slot: u32,
    kind: Kind,
    mapping: &Option<Mapping>,
) -> Chain {
    let mut readable: SmallVec<[Segment; 4]> = smallvec![slots.header_segment(slot)];
    let mut writable: SmallVec<[Segment; 4]> = SmallVec::new();
    let data = mapping
        .as_ref()
        .map(|mapping| limits.segments(mapping.iova, mapping.len() as u32))
        .unwrap_or_default();
    match kind {
        Kind::Read => writable.extend(data),
        Kind::Write => readable.extend(data),
        Kind::Discard | Kind::WriteZeroes { .. } => readable.push(slots.range_segment(slot)),
        Kind::GetId => writable.push(slots.id_segment(slot)),
        Kind::Flush => {}
    }
    writable.push(slots.status_segment(slot));
    (readable, writable)
}
