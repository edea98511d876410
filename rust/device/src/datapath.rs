//! All queues of one device: what its owner calls, from any thread.

use crate::backend::{Connection, Notice, Observer};
use crate::blk::{Disk, DiskProvider};
use crate::chains::{ChainProvider, Handler};
use crate::command::{Command, Done};
use crate::events::{Event, Events};
use crate::failures::{Failure, Quiet};
use crate::handle::{Handle, Outcome};
use crate::irq::Irq;
use crate::live::Live;
use crate::pool::{Pool, Shared as SharedPool};
use crate::queue::NewQueue;
use crate::service::Provider;
use crate::stats::{Counters, QueueStats};
use crate::umem::OwnPages;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};
use vduse_channel::{IrqSink, UmemPort};
use vduse_mem::{DirtyLog, Iotlb, Iova, Resolver};
use vduse_ring::{Layout, QueueState, RingError};

/// How long [`DataPath::close`] waits for a backend that is writing into guest memory.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
static NEXT_DEVICE: AtomicU64 = AtomicU64::new(0);

/// What a device is connected to.
pub struct Hookup {
    /// Resolves IOTLB misses.
    pub resolver: Arc<dyn Resolver>,
    /// Injects irqs of queues without a call fd.
    pub irq_sink: Arc<dyn IrqSink>,
    /// Takes pages of our own in place of its bounce pages. `None`: its own are mapped.
    pub umem: Option<Arc<dyn UmemPort>>,
}

/// How one queue is set up.
pub struct QueueSetup {
    /// Format and size.
    pub layout: Layout,
    /// Negotiated feature bits.
    pub features: u64,
    /// IOVAs of the descriptor, driver and device areas.
    pub areas: [Iova; 3],
    /// Where the queue goes on.
    pub state: QueueState,
    /// Watched for kicks, never read.
    pub kick: OwnedFd,
    /// Gets irqs, an eventfd, a pipe or a unix socket; made O_NONBLOCK. `None`: through the irq sink.
    pub call: Option<OwnedFd>,
    /// In-flight record: a shared memory file and the offset of this queue's part in it.
    pub inflight: Option<(OwnedFd, u64)>,
}

/// The queue is not running, or not yet, or its device broke meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("queue {0} is not running")]
pub struct NotRunning(pub u32);

/// Why a queue did not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// It is running already, or still draining.
    #[error("queue {0} is running already")]
    Running(u32),
    /// The device is closed, or broken until its next reset.
    #[error("the device takes no queues: {0}")]
    Stopped(&'static str),
    /// The ring is where nothing is mapped, or not as the specification wants it.
    #[error("{0}")]
    Ring(#[from] RingError),
    /// An fd that is not what it should be, or the system's refusal.
    #[error("{0}: {1}")]
    System(&'static str, Errno),
    /// The backend has no engine for it.
    #[error("{0}")]
    Backend(#[from] crate::backend::Error),
}

/// What the queues of a device share.
pub(crate) struct Device {
    pub(crate) id: u64,
    /// What serves the queues.
    pub(crate) provider: Box<dyn Provider>,
    pub(crate) irq_sink: Arc<dyn IrqSink>,
    broken: AtomicBool,
    paused: AtomicBool,
    events: Events,
    quiet: Quiet,
}

impl Device {
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Whether queues are to be started without what serves them.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    pub(crate) fn set_paused(&self, is_paused: bool) {
        self.paused.store(is_paused, Ordering::Relaxed);
    }

    /// Stops the device; the first reason is told.
    pub(crate) fn set_broken(&self, queue: u32, message: String) {
        if !self.broken.swap(true, Ordering::Relaxed) {
            self.events.push(Event::Broken { queue, message });
        }
    }

    /// Requests of a queue have failed; it is told unless its like was told lately.
    pub(crate) fn failed(&self, queue: u32, failure: &Failure) {
        if self.quiet.lets_through(failure.errno, Instant::now()) {
            self.events.push(Event::Failed {
                queue,
                message: failure.to_string(),
            });
        }
    }
}

impl Observer for Device {
    fn notice(&self, notice: &Notice) {
        self.events.push(match notice {
            Notice::Resized(size) => Event::Resized { size: size.0 },
            Notice::Connection(connection) => Event::Connection {
                message: match connection {
                    Connection::Local | Connection::Connected => "connected".into(),
                    Connection::Lost(why) => format!("lost: {why}"),
                },
            },
        });
    }
}

struct State {
    /// Replaced by each reset.
    iotlb: Arc<Iotlb>,
    /// Those that run, drain or are being started.
    queues: BTreeMap<u32, Arc<Handle>>,
    counters: BTreeMap<u32, Arc<Counters>>,
    /// Misses of IOTLBs that were replaced.
    misses: u64,
    closed: bool,
}

impl State {
    fn check_open(&self) -> Result<(), StartError> {
        match self.closed {
            true => Err(StartError::Stopped("it is closed")),
            false => Ok(()),
        }
    }

    /// Whether this is still the queue's run: no reset, close or stop has ended it.
    fn has(&self, index: u32, handle: &Arc<Handle>) -> bool {
        self.queues
            .get(&index)
            .is_some_and(|now| Arc::ptr_eq(now, handle))
    }
}

/// A device's data path.
pub struct DataPath {
    pub(crate) device: Arc<Device>,
    pool: Arc<SharedPool>,
    first_worker: usize,
    resolver: Arc<dyn Resolver>,
    /// The same as `resolver`, if there are some.
    own_pages: Option<Arc<OwnPages>>,
    state: Mutex<State>,
}

impl DataPath {
    /// Of a disk, without running queues.
    pub fn blk(pool: &Pool, hookup: Hookup, disk: Arc<Disk>) -> Result<DataPath, Errno> {
        DataPath::new(pool, hookup, Box::new(DiskProvider(disk)))
    }

    /// Of a device whose chains `handler` serves, without running queues.
    pub fn chains(
        pool: &Pool,
        hookup: Hookup,
        handler: Arc<dyn Handler>,
    ) -> Result<DataPath, Errno> {
        DataPath::new(pool, hookup, Box::new(ChainProvider(handler)))
    }

    fn new(pool: &Pool, hookup: Hookup, provider: Box<dyn Provider>) -> Result<DataPath, Errno> {
        let device = Arc::new(Device {
            id: NEXT_DEVICE.fetch_add(1, Ordering::Relaxed),
            provider,
            irq_sink: hookup.irq_sink,
            broken: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            events: Events::new()?,
            quiet: Quiet::default(),
        });
        let observer: Weak<Device> = Arc::downgrade(&device);
        let owner = observer.clone();
        device.provider.observe(observer);
        let own_pages = hookup.umem.map(|port| {
            Arc::new(OwnPages::new(port, move |message| {
                if let Some(device) = owner.upgrade() {
                    device.events.push(Event::Umem { message });
                }
            }))
        });
        let resolver: Arc<dyn Resolver> = match &own_pages {
            Some(pages) => pages.clone(),
            None => hookup.resolver,
        };
        let pool = pool.shared();
        Ok(DataPath {
            device,
            first_worker: pool.reserve(),
            pool,
            state: Mutex::new(State {
                iotlb: Iotlb::new(resolver.clone()),
                queues: BTreeMap::new(),
                counters: BTreeMap::new(),
                misses: 0,
                closed: false,
            }),
            resolver,
            own_pages,
        })
    }

    /// The worker that serves queue 0; queue n is on the n-th after it, and on from the first
    /// after the last.
    pub fn first_worker(&self) -> usize {
        self.first_worker
    }

    /// Whether the caller is one of the workers that serve its queues: to wait for a queue there
    /// is to wait for oneself.
    pub fn is_on_worker(&self) -> bool {
        self.pool.is_current()
    }

    /// Starts a queue, and looks at its ring at once: kicks may have been lost. Maps the ring
    /// areas on the calling thread, which may ask the resolver. A reset or close meanwhile
    /// makes it fail.
    pub fn start_queue(&self, index: u32, setup: QueueSetup) -> Result<(), StartError> {
        let worker = (self.first_worker + index as usize) % self.pool.workers();
        let handle = Arc::new(Handle::new(worker));
        let (iotlb, counters) = {
            let mut state = self.lock();
            state.check_open()?;
            if self.device.is_broken() {
                return Err(StartError::Stopped("it is broken until it is reset"));
            }
            if let Some(handle) = state.queues.get(&index)
                && handle.outcome().is_none()
            {
                return Err(StartError::Running(index));
            }
            state.queues.insert(index, handle.clone());
            let counters = state.counters.entry(index).or_default().clone();
            (state.iotlb.clone(), counters)
        };
        let started = self.start_at(index, setup, &handle, iotlb, counters);
        if started.is_err() {
            self.forget(index, &handle);
        }
        started
    }

    fn start_at(
        &self,
        index: u32,
        setup: QueueSetup,
        handle: &Arc<Handle>,
        iotlb: Arc<Iotlb>,
        counters: Arc<Counters>,
    ) -> Result<(), StartError> {
        let irq = Irq::new(setup.call, index)?;
        let live = Live::new(
            iotlb,
            index,
            setup.layout,
            setup.areas,
            setup.state,
            setup.inflight,
        )?;
        let queue = Box::new(NewQueue {
            device: self.device.clone(),
            index,
            features: setup.features,
            live,
            kick: setup.kick,
            irq,
            counters,
            handle: handle.clone(),
        });
        let (reply, answer) = mpsc::sync_channel(1);
        {
            // Sent under the lock: the Discard of a reset that comes now is sent after it.
            let state = self.lock();
            state.check_open()?;
            if !state.has(index, handle) {
                return Err(StartError::Stopped("it was reset meanwhile"));
            }
            self.pool
                .send(handle.worker(), Command::Start { queue, reply });
        }
        let id = answer
            .recv()
            .map_err(|_| StartError::Stopped("its workers have ended"))??;
        handle.set_id(id);
        Ok(())
    }

    /// Takes nothing more, waits for what is in flight, and says where the queue stands; `None`
    /// if requests were still in flight after `timeout` (it keeps draining; ask again).
    pub fn stop_queue(
        &self,
        index: u32,
        timeout: Duration,
    ) -> Result<Option<QueueState>, NotRunning> {
        let handle = self.lock().queues.get(&index).cloned();
        let handle = handle.ok_or(NotRunning(index))?;
        let id = handle.id().ok_or(NotRunning(index))?;
        handle.set_draining();
        self.pool.send(handle.worker(), Command::Drain { id });
        let Some(outcome) = handle.wait(timeout) else {
            return Ok(None);
        };
        self.forget(index, &handle);
        match outcome {
            Outcome::Stopped(at) => Ok(Some(at)),
            Outcome::Broken => Err(NotRunning(index)),
        }
    }

    /// Whether the queue takes requests.
    pub fn queue_running(&self, index: u32) -> bool {
        !self.device.is_broken()
            && self
                .lock()
                .queues
                .get(&index)
                .is_some_and(|handle| handle.is_running())
    }

    /// Irqs go here from now on; one is sent at once, since one may have been lost.
    pub fn set_call(&self, index: u32, call: Option<OwnedFd>) -> Result<(), StartError> {
        let irq = Irq::new(call, index)?;
        let handle = self.lock().queues.get(&index).cloned();
        let Some((worker, id)) = handle.and_then(|it| Some((it.worker(), it.id()?))) else {
            return Err(StartError::Stopped("the queue is not running"));
        };
        let (done, wait) = mpsc::channel();
        self.pool.send(worker, Command::SetIrq { id, irq, done });
        // Ends when the worker has done it (or has ended).
        let _ = wait.recv();
        Ok(())
    }

    /// Kicks are signalled here from now on; the ring is looked at once, since one may have been
    /// lost.
    pub fn set_kick(&self, index: u32, kick: OwnedFd) -> Result<(), StartError> {
        let handle = self.lock().queues.get(&index).cloned();
        let Some((worker, id)) = handle.and_then(|it| Some((it.worker(), it.id()?))) else {
            return Err(StartError::Stopped("the queue is not running"));
        };
        let (reply, answer) = mpsc::sync_channel(1);
        self.pool.send(worker, Command::SetKick { id, kick, reply });
        // A worker that has ended serves nothing.
        answer.recv().unwrap_or(Ok(()))
    }

    /// UPDATE_IOTLB: drops the mappings of `[start, last]`; true once every worker looks at
    /// the new generation. Requests in flight keep the old mappings.
    pub fn invalidate(&self, start: Iova, last: Iova, timeout: Duration) -> bool {
        let iotlb = self.lock().iotlb.clone();
        iotlb.invalidate(start, last);
        self.refresh_all(timeout)
    }

    /// Has writes into guest memory marked in `log` from now on, or no more, until the next reset;
    /// true once every worker does. Requests in flight are marked when they complete.
    pub fn set_log(&self, log: Option<DirtyLog>, timeout: Duration) -> bool {
        let (iotlb, is_idle) = {
            let state = self.lock();
            (state.iotlb.clone(), state.queues.is_empty())
        };
        iotlb.set_log(log);
        is_idle || self.refresh_all(timeout)
    }

    fn refresh_all(&self, timeout: Duration) -> bool {
        let device = self.device.id;
        self.ask_all(timeout, |done| Command::Refresh { device, done })
    }

    /// Stops all queues without finishing into guest memory; true once no request touches it
    /// any more and all mappings are dropped. A device that was broken is whole again.
    pub fn reset(&self, timeout: Duration) -> bool {
        if !self.discard_queues(timeout) || !self.give_back_pages() {
            return false;
        }
        self.device.broken.store(false, Ordering::Relaxed);
        true
    }

    /// Readable when [`DataPath::events`] has something.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.device.events.fd()
    }

    /// Takes what has happened.
    pub fn events(&self) -> Vec<Event> {
        self.device.events.take()
    }

    /// Counts of the device, and of each queue that ever ran.
    pub fn stats(&self) -> (QueueStats, BTreeMap<u32, QueueStats>) {
        let state = self.lock();
        let queues: BTreeMap<u32, QueueStats> = state
            .counters
            .iter()
            .map(|(index, counters)| (*index, counters.read()))
            .collect();
        let mut total = QueueStats::default();
        for stats in queues.values() {
            total.add(stats);
        }
        total.counts.iotlb_misses = state.misses + state.iotlb.misses();
        (total, queues)
    }

    /// Stops all queues for good. Waits a few seconds at most; what is in flight then ends by
    /// itself, unseen by the driver.
    pub fn close(&self) {
        if !std::mem::replace(&mut self.lock().closed, true) {
            self.discard_queues(CLOSE_WAIT);
            self.give_back_pages();
        }
    }

    /// Whether the bounce pages are the driver's own again.
    fn give_back_pages(&self) -> bool {
        self.own_pages
            .as_ref()
            .is_none_or(|pages| pages.give_back())
    }

    /// Lets go of all queues and of what they had mapped; true once they have ended.
    fn discard_queues(&self, timeout: Duration) -> bool {
        let fresh = Iotlb::new(self.resolver.clone());
        let old = {
            let mut state = self.lock();
            state.queues.clear();
            let old = std::mem::replace(&mut state.iotlb, fresh);
            state.misses += old.misses();
            old
        };
        drop(old);
        let device = self.device.id;
        self.ask_all(timeout, |done| Command::Discard {
            device,
            done: Some(done),
        })
    }

    /// Sends a command to all workers.
    pub(crate) fn send_all(&self, command: impl Fn() -> Command) {
        for worker in 0..self.pool.workers() {
            self.pool.send(worker, command());
        }
    }

    /// Sends a command to all workers; true once all have dropped their `done`.
    pub(crate) fn ask_all(&self, timeout: Duration, command: impl Fn(Done) -> Command) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let (done, wait) = mpsc::channel();
        self.send_all(|| command(done.clone()));
        drop(done);
        let ended = match deadline {
            Some(deadline) => wait.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            None => wait
                .recv()
                .map_err(|_| mpsc::RecvTimeoutError::Disconnected),
        };
        ended == Err(mpsc::RecvTimeoutError::Disconnected)
    }

    /// Drops what is kept of a queue's run, if it is still the queue's last one.
    fn forget(&self, index: u32, handle: &Arc<Handle>) {
        let mut state = self.lock();
        if state.has(index, handle) {
            state.queues.remove(&index);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DataPath {
    fn drop(&mut self) {
        self.pool.release(self.first_worker);
        let device = self.device.id;
        self.send_all(|| Command::Discard { device, done: None });
    }
}
