//! Handles on queues, and how threads wait.
//!
//! Of the threads that wait on one queue, one (the leader) polls the line's irq eventfd, the
//! others wait on a condition variable; whoever takes completions from the ring wakes both. A
//! thread that stops leading wakes the others, so that one of them takes over.

use super::Request;
use super::driver::BlkDriver;
use super::jobs::{Client, Job, Outcome};
use super::queue::QueueCore;
use crate::{Dma, VqLine};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vduse_ring::Spin;

/// How long a thread waits before it asks whether to go on (Python's signals).
const SLICE: Duration = Duration::from_millis(50);

/// One queue and what its threads wait on.
pub(super) struct QueueShared {
    core: Mutex<Guarded>,
    changed: Condvar,
    /// Wakes the leader.
    wake: OwnedFd,
    line: Arc<VqLine>,
    dma: Arc<dyn Dma>,
    /// The leader's.
    spin: Spin,
}

/// The queue and who waits on it.
pub(super) struct Guarded {
    core: QueueCore,
    /// A thread polls the irq eventfd.
    led: bool,
    followers: u32,
}

impl Deref for Guarded {
    type Target = QueueCore;

    fn deref(&self) -> &QueueCore {
        &self.core
    }
}

impl DerefMut for Guarded {
    fn deref_mut(&mut self) -> &mut QueueCore {
        &mut self.core
    }
}

type Guard<'a> = MutexGuard<'a, Guarded>;

impl QueueShared {
    /// What wakes the leader of a queue. Made before the queue is, whose memory does not go
    /// back by itself.
    pub(super) fn wake() -> Result<OwnedFd, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
    }

    pub(super) fn new(
        core: QueueCore,
        wake: OwnedFd,
        dma: &Arc<dyn Dma>,
        line: &Arc<VqLine>,
    ) -> QueueShared {
        QueueShared {
            core: Mutex::new(Guarded {
                core,
                led: false,
                followers: 0,
            }),
            changed: Condvar::new(),
            wake,
            line: Arc::clone(line),
            dma: Arc::clone(dma),
            spin: Spin::default(),
        }
    }

    /// Locks the queue.
    pub(super) fn core(&self) -> Guard<'_> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the threads that wait on this queue if jobs have ended since the last call.
    pub(super) fn notify(&self, core: &mut Guard<'_>) {
        if !core.take_progress() {
            return;
        }
        if core.followers > 0 {
            self.changed.notify_all();
        }
        if core.led {
            // Only a full counter refuses, and that wakes as well.
            let _ = write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Follows the leader for a while.
    fn follow<'a>(&'a self, mut core: Guard<'a>, slice: Duration) -> Guard<'a> {
        core.followers += 1;
        let waited = self.changed.wait_timeout(core, slice);
        let (mut core, _) = waited.unwrap_or_else(PoisonError::into_inner);
        core.followers -= 1;
        core
    }

    /// Leads: sleeps until an irq, a wake-up, or the end of the slice; true if a signal came.
    fn lead<'a>(&'a self, mut core: Guard<'a>, slice: Duration) -> (Guard<'a>, bool) {
        if core.enable_irqs() {
            core.suppress_irqs();
            return (core, false);
        }
        core.led = true;
        drop(core);
        let irq = self.line.irq_fd();
        let mut fds = [
            PollFd::new(&irq, PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: slice.subsec_nanos().into(),
        };
        let mut polled = Ok(0);
        self.spin.wait(|may_sleep| {
            let timeout = if may_sleep {
                timeout
            } else {
                Timespec::default()
            };
            polled = poll(&mut fds, Some(&timeout));
            polled != Ok(0)
        });
        let irqs = match fds[0].revents().is_empty() {
            true => 0,
            false => self.line.take_irqs(),
        };
        if !fds[1].revents().is_empty() {
            let _ = read(&self.wake, &mut [0; 8]);
        }
        let mut core = self.core();
        core.led = false;
        core.suppress_irqs();
        core.count_irqs(irqs);
        if core.followers > 0 {
            self.changed.notify_all();
        }
        (core, polled == Err(Errno::INTR))
    }
}

/// A handle on one queue. Dropped, it lets go of all buffers; requests still outstanding may be
/// carried out, their results are lost.
pub struct BlkQueue {
    driver: Arc<BlkDriver>,
    index: usize,
    client: u32,
}

impl BlkQueue {
    pub(super) fn new(driver: Arc<BlkDriver>, index: usize) -> BlkQueue {
        let client = driver
            .shared(index)
            .core()
            .clients()
            .insert(Client::default());
        BlkQueue {
            driver,
            index,
            client,
        }
    }

    /// Hands a request to the queue; `token` comes back from [`BlkQueue::reap`]. Never waits:
    /// what the ring cannot take yet follows as others end. The device learns of it at
    /// [`BlkQueue::kick`]. The buffer must stay valid until reaped.
    ///
    /// Errors: `EINVAL` (not whole sectors, beyond the end), `EROFS`, `EOPNOTSUPP`, `ENODEV`
    /// (not started), `EIO` (device given up), or what [`BlkDriver::stop`] was called with.
    pub fn submit(&self, request: Request, token: u64) -> Result<(), Errno> {
        let (kind, sector, total, buffer) = request.into_parts().ok_or(Errno::INVAL)?;
        let needed = self.driver.admit(kind, sector, total)?;
        let start = sector.bytes().ok_or(Errno::INVAL)?;
        let job = Job {
            kind,
            start,
            total,
            issued: 0,
            closed: false,
            in_flight: 0,
            error: None,
            buffer,
            client: Some(self.client),
            token,
        };
        let shared = self.shared();
        let mut core = shared.core();
        if let Some(client) = core.clients().get_mut(self.client) {
            client.outstanding += 1;
        }
        core.submit(job, needed);
        shared.notify(&mut core);
        Ok(())
    }

    /// Puts outcomes where the next [`BlkQueue::reap`] finds them: requests that were refused,
    /// outcomes that could not be delivered.
    pub fn put_back(&self, ended: &mut Vec<(u64, Outcome)>) {
        let shared = self.shared();
        let mut core = shared.core();
        core.put_back(self.client, ended);
        shared.notify(&mut core);
    }

    /// Makes what was submitted available to the device, kicking it if it asks for that.
    pub fn kick(&self) {
        if self.driver.ending().errno().is_none() {
            self.shared().core().publish();
        }
    }

    /// Appends the requests that have ended, `(token, bytes or errno)`; never waits, and kicks
    /// for whatever could follow on. Returns how many.
    pub fn reap(&self, out: &mut Vec<(u64, Outcome)>) -> usize {
        let mut core = self.pump(self.shared().core());
        let Some(client) = core.clients().get_mut(self.client) else {
            return 0;
        };
        let reaped = client.finished.len();
        client.outstanding -= reaped;
        out.append(&mut client.finished);
        reaped
    }

    /// Waits until [`BlkQueue::reap`] has something, nothing is outstanding, or `timeout` passed
    /// (`None`: for ever). False if it passed.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.wait_while(timeout, &mut || true)
    }

    /// As [`BlkQueue::wait`]; `go_on` is asked about every 50 ms and after every signal, and
    /// false ends the wait with false.
    pub fn wait_while(&self, timeout: Option<Duration>, go_on: &mut dyn FnMut() -> bool) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut asked = Instant::now();
        let mut core = self.shared().core();
        loop {
            core = self.pump(core);
            if self.has_ended(&mut core) {
                return true;
            }
            let now = Instant::now();
            let left = deadline.map_or(SLICE, |at| at.saturating_duration_since(now));
            if left.is_zero() {
                return false;
            }
            let signal;
            (core, signal) = self.sleep(core, left.min(SLICE));
            if signal || asked.elapsed() >= SLICE {
                drop(core);
                if !go_on() {
                    return false;
                }
                asked = Instant::now();
                core = self.shared().core();
            }
        }
    }

    /// Requests submitted and not reaped.
    pub fn outstanding(&self) -> usize {
        let mut core = self.shared().core();
        let client = core.clients().get_mut(self.client);
        client.map_or(0, |client| client.outstanding)
    }

    fn shared(&self) -> &QueueShared {
        self.driver.shared(self.index)
    }

    fn has_ended(&self, core: &mut Guard<'_>) -> bool {
        let client = core.clients().get_mut(self.client);
        client.is_none_or(|client| !client.finished.is_empty() || client.outstanding == 0)
    }

    /// Takes completions and tells whoever waits for them.
    fn pump<'a>(&'a self, mut core: Guard<'a>) -> Guard<'a> {
        let gave_up = core.pump();
        self.shared().notify(&mut core);
        if gave_up {
            drop(core);
            self.driver.end_all();
            core = self.shared().core();
        }
        core
    }

    /// Sleeps until something may have changed; true if a signal came.
    fn sleep<'a>(&'a self, core: Guard<'a>, slice: Duration) -> (Guard<'a>, bool) {
        let shared = self.shared();
        if core.led {
            return (shared.follow(core, slice), false);
        }
        if core.in_flight() > 0 || !core.is_stalled() {
            return shared.lead(core, slice);
        }
        // Nothing of this queue will come back: what fills the address space is other queues',
        // whose threads unmap it; at the end of a slice we look for those without a thread.
        drop(core);
        shared.dma.wait_room(slice, &mut || {
            let core = self.pump(shared.core());
            core.in_flight() > 0 || !core.is_stalled()
        });
        self.driver.pump_all();
        (shared.core(), false)
    }
}

impl Drop for BlkQueue {
    fn drop(&mut self) {
        self.shared().core().remove_client(self.client);
    }
}
