//! The limits, and the virtqueues that share them.

use super::bucket::{Bucket, Rate};
use crate::Completer;
use crate::slab::Slab;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A reservation further away lies this far away.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Limits of all operations together, of reads alone, of the others alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Split {
    /// Reads and writes together.
    pub total: Option<Rate>,
    /// Reads.
    pub read: Option<Rate>,
    /// Writes, and what else changes the disk.
    pub write: Option<Rate>,
}

/// What is limited; `None` is not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Operations a second.
    pub iops: Split,
    /// Bytes a second. Discards and write zeroes move none.
    pub bps: Split,
    /// A read or write of more bytes counts as several operations.
    pub iops_size: Option<u64>,
}

/// What an operation costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    pub(super) is_read: bool,
    pub(super) bytes: u64,
}

/// A place in time that an operation has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reservation {
    pub(super) due: Instant,
    cost: Cost,
    /// Of the limits it was made under.
    generation: u64,
}

/// Limits that any number of virtqueues of any number of disks share. Each has at most one
/// reservation at a time, so they take turns.
pub struct Throttle {
    start: Instant,
    /// Counts changes of the limits.
    generation: AtomicU64,
    state: Mutex<State>,
}

struct State {
    limits: Limits,
    buckets: Buckets,
    members: Slab<Member>,
}

struct Member {
    completer: Completer,
    /// Of its reservation, while that waits.
    due: Option<Instant>,
}

impl Throttle {
    /// With these limits, from now on.
    pub fn new(limits: Limits) -> Arc<Throttle> {
        Throttle::starting(limits, Instant::now())
    }

    pub(super) fn starting(limits: Limits, start: Instant) -> Arc<Throttle> {
        Arc::new(Throttle {
            start,
            generation: AtomicU64::new(0),
            state: Mutex::new(State {
                limits,
                buckets: Buckets::new(&limits),
                members: Slab::new(),
            }),
        })
    }

    /// The limits now.
    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Other limits from now on, with empty buckets; also for what waits already.
    pub fn set_limits(&self, limits: Limits) {
        let state = &mut *self.lock();
        state.limits = limits;
        state.buckets = Buckets::new(&limits);
        self.generation.fetch_add(1, Ordering::Release);
        for (_, member) in state.members.iter_mut() {
            member.due = None;
            member.completer.wake();
        }
    }

    /// One more virtqueue; its key.
    pub(super) fn join(&self, completer: Completer) -> u32 {
        self.lock().members.insert(Member {
            completer,
            due: None,
        })
    }

    pub(super) fn leave(&self, member: u32) {
        self.lock().members.remove(member);
    }

    /// Whether an operation of `member`, which has none waiting, may go at once; else its place
    /// in time.
    pub(super) fn admit(&self, member: u32, cost: Cost, now: Instant) -> Result<(), Reservation> {
        let state = &mut *self.lock();
        let reservation = self.place(state, cost, now);
        if reservation.due <= now && !state.is_anothers_turn(member, now) {
            return Ok(());
        }
        state.set_due(member, Some(reservation.due));
        Err(reservation)
    }

    /// A place in time for the operation of `member` that waits longest.
    pub(super) fn reserve(&self, member: u32, cost: Cost, now: Instant) -> Reservation {
        let state = &mut *self.lock();
        let reservation = self.place(state, cost, now);
        state.set_due(member, Some(reservation.due));
        reservation
    }

    /// The operation of `member`'s reservation goes. Whether another's turn has come.
    pub(super) fn go(&self, member: u32, now: Instant) -> bool {
        let state = &mut *self.lock();
        state.set_due(member, None);
        state.is_anothers_turn(member, now)
    }

    /// The operation of `member`'s reservation will not go.
    pub(super) fn give_back(&self, member: u32, reservation: &Reservation) {
        let state = &mut *self.lock();
        state.set_due(member, None);
        if self.is_current(reservation) {
            state.buckets.give_back(reservation.cost, &state.limits);
        }
    }

    /// Whether it was made under the limits of now.
    pub(super) fn is_current(&self, reservation: &Reservation) -> bool {
        reservation.generation == self.generation.load(Ordering::Acquire)
    }

    fn place(&self, state: &mut State, cost: Cost, now: Instant) -> Reservation {
        let seconds = now.saturating_duration_since(self.start).as_secs_f64();
        let wait = state.buckets.reserve(seconds, cost, &state.limits) - seconds;
        let wait = Duration::try_from_secs_f64(wait.max(0.0)).map_or(FAR, |wait| wait.min(FAR));
        Reservation {
            due: now + wait,
            cost,
            generation: self.generation.load(Ordering::Acquire),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set_due(&mut self, member: u32, due: Option<Instant>) {
        if let Some(member) = self.members.get_mut(member) {
            member.due = due;
        }
    }

    /// Whether another virtqueue's turn has come, and has not been taken.
    fn is_anothers_turn(&self, member: u32, now: Instant) -> bool {
        self.members
            .iter()
            .any(|(key, other)| key != member && other.due.is_some_and(|due| due <= now))
    }
}

/// One bucket a limit. Each is reserved in from now on, whatever the others say: that a read
/// has to wait for its own limit keeps no write from the common one.
struct Buckets {
    iops: [Option<Bucket>; 3],
    bps: [Option<Bucket>; 3],
}

impl Buckets {
    fn new(limits: &Limits) -> Buckets {
        let buckets =
            |split: Split| [split.total, split.read, split.write].map(|rate| rate.map(Bucket::new));
        Buckets {
            iops: buckets(limits.iops),
            bps: buckets(limits.bps),
        }
    }

    fn reserve(&mut self, now: f64, cost: Cost, limits: &Limits) -> f64 {
        let charged = self.charged(cost, limits);
        charged.fold(now, |due, (bucket, cost)| {
            due.max(bucket.reserve(now, cost))
        })
    }

    fn give_back(&mut self, cost: Cost, limits: &Limits) {
        self.charged(cost, limits)
            .for_each(|(bucket, cost)| bucket.give_back(cost));
    }

    /// The buckets that an operation goes through, and what it costs there.
    fn charged(&mut self, cost: Cost, limits: &Limits) -> impl Iterator<Item = (&mut Bucket, f64)> {
        let bytes = cost.bytes as f64;
        let operations = limits
            .iops_size
            .map_or(1.0, |size| (bytes / size as f64).max(1.0));
        let mine = move |of: usize| of == 0 || (of == 1) == cost.is_read;
        let pick = move |buckets, cost| {
            let buckets: std::slice::IterMut<'_, Option<Bucket>> = buckets;
            buckets
                .enumerate()
                .filter(move |(of, _)| mine(*of))
                .filter_map(move |(_, bucket)| Some((bucket.as_mut()?, cost)))
        };
        pick(self.iops.iter_mut(), operations).chain(pick(self.bps.iter_mut(), bytes))
    }
}
