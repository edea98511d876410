//! Handles on queues.

use super::Request;
use super::driver::BlkDriver;
use super::jobs::{Client, Job, Outcome, Wake};
use super::shared::{Guard, QueueShared};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a thread waits before it asks whether to go on (Python's signals).
const SLICE: Duration = Duration::from_millis(50);

/// How an event loop can sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// Not at all: [`BlkQueue::reap`] has something.
    Ready,
    /// Until an irq or a wake-up.
    Waiting,
    /// A moment: the address space is full of other queues' requests, whose end is not told.
    Stalled,
}

/// A handle on one queue. Dropped, it lets go of all buffers; requests still outstanding may be
/// carried out, their results are lost.
pub struct BlkQueue {
    driver: Arc<BlkDriver>,
    index: usize,
    client: u32,
}

impl BlkQueue {
    pub(super) fn new(driver: Arc<BlkDriver>, index: usize, wake: Option<Wake>) -> BlkQueue {
        let client = Client {
            wake,
            ..Client::default()
        };
        let client = driver.shared(index).core().clients().insert(client);
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
        let (job, needed) = self.job(request, token)?;
        let mut core = self.shared().core();
        core.take(job, needed);
        self.shared().notify(&mut core);
        Ok(())
    }

    /// Hands many over at once, with their tokens, and kicks. What is refused ends like the
    /// rest, by its token.
    pub fn submit_all(&self, requests: impl IntoIterator<Item = (Request, u64)>) {
        let mut held = None;
        for (request, token) in requests {
            if request.is_ranged() {
                // Looks into all queues.
                drop(held.take());
            }
            let job = self.job(request, token);
            let core = held.get_or_insert_with(|| self.shared().core());
            match job {
                Ok((job, needed)) => core.take(job, needed),
                Err(errno) => core.put_back(self.client, &mut vec![(token, Err(errno))]),
            }
        }
        if let Some(mut core) = held {
            if self.driver.ending().errno().is_none() {
                core.publish();
            }
            self.shared().notify(&mut core);
        }
    }

    /// The request as a job of this client, and whether anything is to be done for it.
    fn job(&self, request: Request, token: u64) -> Result<(Job, bool), Errno> {
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
        Ok((job, needed))
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
    /// for whatever could follow on. Returns how many. Undoes [`BlkQueue::arm`].
    pub fn reap(&self, out: &mut Vec<(u64, Outcome)>) -> usize {
        let mut core = self.shared().core();
        core.disarm(self.client);
        let mut core = self.pump(core);
        let Some(client) = core.clients().get_mut(self.client) else {
            return 0;
        };
        let reaped = client.finished.len();
        client.outstanding -= reaped;
        out.append(&mut client.finished);
        reaped
    }

    /// The eventfd of this queue's irqs, for an event loop to watch for edges and never to read.
    pub fn irq_fd(&self) -> BorrowedFd<'_> {
        self.shared().line.irq_fd()
    }

    /// Before an event loop sleeps. It needs a handle with a wake-up
    /// ([`BlkDriver::queue_for_events`]), which comes where another thread takes the completions.
    pub fn arm(&self) -> Armed {
        let mut core = self.pump(self.shared().core());
        if self.has_finished(&mut core) {
            return Armed::Ready;
        }
        if self.has_ended(&mut core) {
            return Armed::Waiting;
        }
        if core.in_flight() == 0 && core.is_stalled() {
            drop(core);
            self.driver.pump_all();
            return Armed::Stalled;
        }
        match core.arm(self.client) {
            true => Armed::Waiting,
            false => Armed::Ready,
        }
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
                let go_on = go_on();
                core = self.shared().core();
                if !go_on {
                    // Irqs that were taken are others' too.
                    drop(self.pump(core));
                    return false;
                }
                asked = Instant::now();
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

    fn has_finished(&self, core: &mut Guard<'_>) -> bool {
        let client = core.clients().get_mut(self.client);
        client.is_some_and(|client| !client.finished.is_empty())
    }

    fn has_ended(&self, core: &mut Guard<'_>) -> bool {
        let client = core.clients().get_mut(self.client);
        client.is_none_or(|client| !client.finished.is_empty() || client.outstanding == 0)
    }

    /// Takes completions and tells whoever waits for them.
    fn pump<'a>(&'a self, mut core: Guard<'a>) -> Guard<'a> {
        let gave_up = core.collect();
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
        if core.is_led() {
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
        let mut core = self.shared().core();
        core.disarm(self.client);
        core.remove_client(self.client);
    }
}
