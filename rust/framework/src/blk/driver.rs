//! The driver: its queues, and how it ends.

use super::config::feature;
use super::handle::BlkQueue;
use super::jobs::Wake;
use super::limits::Limits;
use super::queue::QueueCore;
use super::request::Kind;
use super::shared::QueueShared;
use super::{BlkConfig, Request, Sectors, SetupError};
use crate::thread::thread_index;
use crate::{Dma, VqLine};
use rustix::io::Errno;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vduse_histogram::Counts;
use vduse_mem::Iova;
use vduse_ring::Layout;

/// What a driver has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkStats {
    /// Virtio-blk requests made available.
    pub requests: u64,
    /// Bytes that the device has read for us.
    pub bytes_read: u64,
    /// Bytes that the device has written for us.
    pub bytes_written: u64,
    /// Virtio-blk requests that failed.
    pub errors: u64,
    /// Kicks sent.
    pub kicks: u64,
    /// Batches published without a kick, because the device had asked for none.
    pub kicks_suppressed: u64,
    /// Irqs received.
    pub irqs: u64,
}

impl std::ops::AddAssign for BlkStats {
    fn add_assign(&mut self, other: BlkStats) {
        self.requests += other.requests;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.errors += other.errors;
        self.kicks += other.kicks;
        self.kicks_suppressed += other.kicks_suppressed;
        self.irqs += other.irqs;
    }
}

/// With which errno requests end, once the driver does not run: before the start, after a stop,
/// after the device was given up.
#[derive(Debug)]
pub(super) struct Ending {
    /// 0 while running.
    errno: AtomicI32,
    failure: Mutex<Option<String>>,
}

impl Ending {
    pub(super) fn errno(&self) -> Option<Errno> {
        match self.errno.load(Ordering::Acquire) {
            0 => None,
            errno => Some(Errno::from_raw_os_error(errno)),
        }
    }

    /// The device broke the rules: nothing more is taken from it.
    pub(super) fn fail(&self, why: String) {
        let running = self.errno.compare_exchange(
            0,
            Errno::IO.raw_os_error(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if running.is_ok() {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        }
    }
}

/// The driver's side of one virtio-blk device, shared by threads.
pub struct BlkDriver {
    features: u64,
    capacity: AtomicU64,
    queues: Vec<QueueShared>,
    ending: Arc<Ending>,
    phase: Mutex<Phase>,
}

/// Where a driver stands; it never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before DRIVER_OK.
    New,
    Started,
    /// The device was reset.
    Stopped,
}

impl BlkDriver {
    /// A driver for the negotiated `features` and the device's config space, its rings and
    /// headers allocated in `dma`; `lines` and `queue_sizes` (descriptors) one a queue.
    pub fn new(
        dma: Arc<dyn Dma>,
        features: u64,
        config: &[u8],
        queue_sizes: &[u16],
        lines: &[Arc<VqLine>],
    ) -> Result<Arc<BlkDriver>, SetupError> {
        if queue_sizes.is_empty() || queue_sizes.len() != lines.len() {
            return Err(SetupError::Queues(queue_sizes.len(), lines.len()));
        }
        let config = BlkConfig::parse(config, features)?;
        let ending = Arc::new(Ending {
            errno: AtomicI32::new(Errno::NODEV.raw_os_error()),
            failure: Mutex::new(None),
        });
        let mut driver = BlkDriver {
            features,
            capacity: AtomicU64::new(config.capacity.0),
            queues: Vec::with_capacity(lines.len()),
            ending: Arc::clone(&ending),
            phase: Mutex::new(Phase::New),
        };
        for (&size, line) in queue_sizes.iter().zip(lines) {
            let layout = Layout {
                size,
                packed: features & feature::RING_PACKED != 0,
                event_idx: features & feature::EVENT_IDX != 0,
                indirect: features & feature::INDIRECT_DESC != 0,
            };
            let limits = Limits::new(&config, size, layout.indirect, dma.max_mapping())?;
            let wake = QueueShared::wake().map_err(SetupError::Eventfd)?;
            let core = QueueCore::new(&dma, line, &ending, limits, layout)?;
            driver.queues.push(QueueShared::new(core, wake, &dma, line));
        }
        Ok(Arc::new(driver))
    }

    /// Number of queues.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// IOVAs of a queue's descriptor, driver and device areas.
    pub fn areas(&self, queue: usize) -> Option<[Iova; 3]> {
        Some(self.queues.get(queue)?.core().areas())
    }

    /// After DRIVER_OK: requests are taken from now on (`ENODEV` before).
    pub fn start(&self) {
        let mut phase = self.phase();
        if *phase == Phase::New {
            *phase = Phase::Started;
            self.ending.errno.store(0, Ordering::Release);
        }
    }

    /// After the device has answered a reset: every outstanding and later request ends with
    /// `errno`, and what the device could reach goes back.
    pub fn stop(&self, errno: Errno) {
        let mut phase = self.phase();
        *phase = Phase::Stopped;
        self.ending
            .errno
            .store(errno.raw_os_error(), Ordering::Release);
        self.end_all();
        self.queues.iter().for_each(|queue| queue.core().release());
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a config interrupt: the capacity may have changed.
    pub fn set_config(&self, config: &[u8]) -> Result<(), SetupError> {
        let config = BlkConfig::parse(config, self.features)?;
        self.capacity.store(config.capacity.0, Ordering::Release);
        Ok(())
    }

    /// The disk's size.
    pub fn capacity(&self) -> Sectors {
        Sectors(self.capacity.load(Ordering::Acquire))
    }

    /// VIRTIO_BLK_F_RO.
    pub fn read_only(&self) -> bool {
        self.features & feature::RO != 0
    }

    /// VIRTIO_BLK_F_DISCARD.
    pub fn can_discard(&self) -> bool {
        self.features & feature::DISCARD != 0
    }

    /// The negotiated feature bits.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// With which errno every request ends, once the driver does not run.
    pub fn ended(&self) -> Option<Errno> {
        self.ending.errno()
    }

    /// Why the device was given up, if it was.
    pub fn failure(&self) -> Option<String> {
        let failure = self.ending.failure.lock();
        failure.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was done so far.
    pub fn stats(&self) -> BlkStats {
        let mut stats = BlkStats::default();
        for queue in &self.queues {
            stats += queue.core().stats();
        }
        stats
    }

    /// The same of each queue, and how many requests each of its publications had.
    pub fn queue_stats(&self) -> Vec<(BlkStats, Counts)> {
        let cores = self.queues.iter().map(|queue| queue.core());
        cores
            .map(|core| (core.stats(), core.batch_requests()))
            .collect()
    }

    /// A handle on queue `index`: its requests and their results are its own, whoever else uses
    /// the queue. `None` if there is no such queue.
    pub fn queue(self: &Arc<Self>, index: usize) -> Option<BlkQueue> {
        (index < self.queues.len()).then(|| BlkQueue::new(Arc::clone(self), index, None))
    }

    /// The same for an event loop: `wake` is called when [`BlkQueue::arm`]ed requests have ended
    /// by another thread's doing, and when the driver ends.
    pub fn queue_for_events(self: &Arc<Self>, index: usize, wake: Wake) -> Option<BlkQueue> {
        (index < self.queues.len()).then(|| BlkQueue::new(Arc::clone(self), index, Some(wake)))
    }

    /// One request, on this thread's queue; waits for its end and returns the bytes moved.
    /// While it waits, `go_on` is asked about every 50 ms and after every signal; false ends
    /// the wait with `EINTR` (the request may still be carried out, its buffer is free).
    pub fn run(
        self: &Arc<Self>,
        request: Request,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<u64, Errno> {
        let queue = BlkQueue::new(Arc::clone(self), thread_index() % self.queues.len(), None);
        queue.submit(request, 0)?;
        queue.kick();
        if !queue.wait_while(None, go_on) {
            return Err(Errno::INTR);
        }
        let mut ended = Vec::with_capacity(1);
        queue.reap(&mut ended);
        ended.pop().map_or(Err(Errno::IO), |(_, outcome)| outcome)
    }

    pub(super) fn shared_queues(&self) -> &[QueueShared] {
        &self.queues
    }

    pub(super) fn shared(&self, index: usize) -> &QueueShared {
        &self.queues[index]
    }

    pub(super) fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Whether a request of `kind` over these bytes is allowed; `Ok(false)`: it is, and there is
    /// nothing to do for it.
    pub(super) fn admit(&self, kind: Kind, sector: Sectors, bytes: u64) -> Result<bool, Errno> {
        if let Some(errno) = self.ending.errno() {
            return Err(errno);
        }
        let has = |feature| self.features & feature != 0;
        let supported = match kind {
            Kind::Flush => return Ok(has(feature::FLUSH)),
            Kind::GetId => return Ok(true),
            Kind::Read | Kind::Write => true,
            Kind::Discard => has(feature::DISCARD),
            Kind::WriteZeroes { .. } => has(feature::WRITE_ZEROES),
        };
        if kind != Kind::Read && self.read_only() {
            return Err(Errno::ROFS);
        }
        if !supported {
            return Err(Errno::OPNOTSUPP);
        }
        let end = sector.checked_add(Sectors(bytes / Sectors::SIZE));
        match end {
            Some(end) if end <= self.capacity() => Ok(bytes > 0),
            _ => Err(Errno::INVAL),
        }
    }

    /// Every queue ends what it has; nobody holds a queue's lock.
    pub(super) fn end_all(&self) {
        for queue in &self.queues {
            let mut core = queue.core();
            core.fail_all();
            queue.notify(&mut core);
            core.wake_all();
        }
    }

    /// Takes completions on every queue: one whose owner does not reap may hold the room that
    /// others wait for.
    pub(super) fn pump_all(&self) {
        let mut gave_up = false;
        for queue in &self.queues {
            let mut core = queue.core();
            gave_up |= core.collect();
            queue.notify(&mut core);
        }
        if gave_up {
            self.end_all();
        }
    }
}

impl Drop for BlkDriver {
    /// A device that was started and not reset may still use the rings: they stay allocated
    /// then.
    fn drop(&mut self) {
        if *self.phase() != Phase::Started {
            self.queues
                .iter()
                .for_each(|queue| queue.core().free_memory());
        }
    }
}
