//! Layer `throttle`: so many operations and bytes a second. An operation that is too early waits
//! for its turn, in the order of its virtqueue. Flushes do not wait, and pass those that do.

mod bucket;
mod group;
#[cfg(test)]
mod tests;

pub use bucket::Rate;
pub use group::{Limits, Split, Throttle};

use super::Layer;
use super::held::{Cancelled, Held, earliest};
use crate::backend::{Completion, Engine, Local, Op, Submitted, Token};
use group::{Cost, Reservation};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Holds a disk to the limits of a [`Throttle`].
pub struct ThrottleLayer {
    throttle: Arc<Throttle>,
    clock: fn() -> Instant,
}

impl ThrottleLayer {
    /// With limits that others may share.
    pub fn new(throttle: Arc<Throttle>) -> ThrottleLayer {
        ThrottleLayer {
            throttle,
            clock: Instant::now,
        }
    }
}

impl Layer for ThrottleLayer {
    fn wrap(&self, below: Box<dyn Engine>, local: &Local) -> Box<dyn Engine> {
        Box::new(ThrottleEngine {
            below,
            member: self.throttle.join(local.completer.clone()),
            throttle: self.throttle.clone(),
            clock: self.clock,
            waiting: VecDeque::new(),
            first: None,
            cancelled: Cancelled::default(),
        })
    }
}

struct ThrottleEngine {
    below: Box<dyn Engine>,
    throttle: Arc<Throttle>,
    /// Our key in it.
    member: u32,
    clock: fn() -> Instant,
    waiting: VecDeque<Held>,
    /// The place of the first that waits; `None` if there is none, or it was cancelled.
    first: Option<Reservation>,
    cancelled: Cancelled,
}

/// What an operation costs; `None` if it does not wait.
fn cost_of(op: &Op) -> Option<Cost> {
    let (is_read, bytes) = match op {
        Op::Flush => return None,
        Op::Read { extent, .. } => (true, extent.len().0),
        Op::Write { extent, .. } => (false, extent.len().0),
        Op::Discard { .. } | Op::WriteZeroes { .. } => (false, 0),
    };
    Some(Cost { is_read, bytes })
}

impl ThrottleEngine {
    /// The place in time of the first that waits, a new one where it has none or the limits
    /// are others now.
    fn reserve_first(&mut self, now: Instant) -> Option<Reservation> {
        let first = self.waiting.front()?;
        let current = self
            .first
            .filter(|reservation| self.throttle.is_current(reservation));
        let reservation = current.or_else(|| {
            let cost = cost_of(&first.op)?;
            Some(self.throttle.reserve(self.member, cost, now))
        });
        self.first = reservation;
        reservation
    }
}

impl Engine for ThrottleEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let Some(cost) = cost_of(&op) else {
            return self.below.submit(token, op);
        };
        if self.waiting.is_empty() {
            match self.throttle.admit(self.member, cost, (self.clock)()) {
                Ok(()) => return self.below.submit(token, op),
                Err(reservation) => self.first = Some(reservation),
            }
        }
        self.waiting.push_back(Held { token, op });
        Submitted::Pending
    }

    fn flush(&mut self) {
        self.below.flush();
    }

    fn cancel(&mut self, token: Token) {
        let first = self.waiting.front();
        if first.is_some_and(|first| first.token == token)
            && let Some(reservation) = self.first.take()
        {
            self.throttle.give_back(self.member, &reservation);
        }
        if !self.waiting.is_empty() {
            self.cancelled.add(token);
        }
        self.below.cancel(token);
    }

    fn completed(&mut self, completion: &mut Completion) {
        self.below.completed(completion);
    }

    fn deadline(&self) -> Option<Instant> {
        let first = self
            .first
            .map(|first| match self.throttle.is_current(&first) {
                true => first.due,
                false => (self.clock)(),
            });
        earliest([first, self.cancelled.deadline(), self.below.deadline()])
    }

    fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        self.below.expire(now, ended);
        self.cancelled
            .sweep(ended, |stays| self.waiting.retain(stays));
        while let Some(reservation) = self.reserve_first(now)
            && reservation.due <= now
            && let Some(first) = self.waiting.pop_front()
        {
            self.first = None;
            let is_anothers_turn = self.throttle.go(self.member, now);
            first.go_on(self.below.as_mut(), ended);
            if is_anothers_turn {
                // Ours comes again, after theirs.
                self.reserve_first(now);
                break;
            }
        }
    }
}

impl Drop for ThrottleEngine {
    fn drop(&mut self) {
        if let Some(reservation) = &self.first {
            self.throttle.give_back(self.member, reservation);
        }
        self.throttle.leave(self.member);
    }
}
