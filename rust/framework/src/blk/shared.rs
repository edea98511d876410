//! One queue and how those who use it wait.
//!
//! Of the threads that wait on one queue, one (the leader) polls the line's irq eventfd, the
//! others wait on a condition variable; whoever takes completions from the ring wakes both. A
//! thread that stops leading wakes the others, so that one of them takes over.
//!
//! An event loop watches the irq eventfd itself, for edges, since a leader may read it. While
//! its client is armed irqs stay asked for, and whoever takes the client's completions wakes it.

use super::Hold;
use super::jobs::Client;
use super::queue::QueueCore;
use crate::{Dma, VqLine};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vduse_ring::Spin;

/// One queue and what its threads wait on.
pub(super) struct QueueShared {
    core: Mutex<Guarded>,
    changed: Condvar,
    /// Wakes the leader.
    wake: OwnedFd,
    pub(super) line: Arc<VqLine>,
    pub(super) dma: Arc<dyn Dma>,
    /// The leader's.
    spin: Spin,
}

/// The queue and who waits on it.
pub(super) struct Guarded {
    core: QueueCore,
    /// A thread polls the irq eventfd.
    led: bool,
    followers: u32,
    /// Clients that rely on an irq or a wake-up.
    armed: u32,
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

impl Guarded {
    /// Whether a thread leads.
    pub(super) fn is_led(&self) -> bool {
        self.led
    }

    /// Takes completions; true if the device was given up. Irqs that somebody sleeps on are
    /// asked for anew, since with EVENT_IDX that is a place in the ring (virtio 1.3, section
    /// 2.7.7.2).
    pub(super) fn collect(&mut self) -> bool {
        loop {
            let pumped = self.core.pump();
            let sleeper = self.led || self.armed > 0;
            if pumped.gave_up || !pumped.took || !sleeper || !self.core.enable_irqs() {
                return pumped.gave_up;
            }
        }
    }

    /// What is left undone from now on; true if the device was given up. What came meanwhile is
    /// taken, and who sleeps relies on an irq of a ring that may be another now.
    pub(super) fn set_hold(&mut self, hold: Hold) -> bool {
        self.core.set_hold(hold);
        let mut pumped = self.core.pump();
        let sleeper = self.led || self.armed > 0;
        while sleeper && self.core.enable_irqs() {
            pumped = self.core.pump();
            if !pumped.took {
                break;
            }
        }
        pumped.gave_up
    }

    /// No irqs, but where somebody sleeps on them.
    fn relax_irqs(&mut self) {
        if !self.led && self.armed == 0 {
            self.core.suppress_irqs();
        }
    }

    /// Asks for irqs on behalf of a client; false if a completion is there already.
    pub(super) fn arm(&mut self, client: u32) -> bool {
        if self.core.enable_irqs() {
            self.relax_irqs();
            return false;
        }
        if let Some(client) = self.core.clients().get_mut(client)
            && !std::mem::replace(&mut client.armed, true)
        {
            self.armed += 1;
        }
        true
    }

    /// The client looks by itself.
    pub(super) fn disarm(&mut self, client: u32) {
        let client = self.core.clients().get_mut(client);
        if client.is_some_and(Client::disarm) {
            self.armed -= 1;
            self.relax_irqs();
        }
    }

    /// Wakes armed clients whose requests have ended.
    fn wake_armed(&mut self) {
        if self.armed == 0 {
            return;
        }
        for (_, client) in self.core.clients().iter_mut() {
            if !client.finished.is_empty() && client.disarm() {
                self.armed -= 1;
                client.wake();
            }
        }
        self.relax_irqs();
    }

    /// Wakes all clients: the driver has ended.
    pub(super) fn wake_all(&mut self) {
        for (_, client) in self.core.clients().iter_mut() {
            client.wake();
        }
    }
}

pub(super) type Guard<'a> = MutexGuard<'a, Guarded>;

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
                armed: 0,
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

    /// Wakes who waits on this queue if jobs have ended since the last call.
    pub(super) fn notify(&self, core: &mut Guard<'_>) {
        if !core.take_progress() {
            return;
        }
        core.wake_armed();
        if core.followers > 0 {
            self.changed.notify_all();
        }
        if core.led {
            // Only a full counter refuses, and that wakes as well.
            let _ = write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Follows the leader for a while.
    pub(super) fn follow<'a>(&'a self, mut core: Guard<'a>, slice: Duration) -> Guard<'a> {
        core.followers += 1;
        let waited = self.changed.wait_timeout(core, slice);
        let (mut core, _) = waited.unwrap_or_else(PoisonError::into_inner);
        core.followers -= 1;
        core
    }

    /// Leads: sleeps until an irq, a wake-up, or the end of the slice; true if a signal came.
    pub(super) fn lead<'a>(&'a self, mut core: Guard<'a>, slice: Duration) -> (Guard<'a>, bool) {
        if core.enable_irqs() {
            core.relax_irqs();
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
        core.relax_irqs();
        core.count_irqs(irqs);
        if core.followers > 0 {
            self.changed.notify_all();
        }
        (core, polled == Err(Errno::INTR))
    }
}
