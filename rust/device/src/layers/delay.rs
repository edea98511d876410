//! Layer `delay`: operations wait before they go to the backend, each kind its own time.

use super::held::{Cancelled, Held, earliest};
use super::random::Random;
use super::{Layer, OpKind};
use crate::backend::{Completion, Engine, Local, Op, Submitted, Token};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an operation waits: from `least` to `most`, evenly distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// At least.
    pub least: Duration,
    /// At most; as long as `least` or longer.
    pub most: Duration,
}

/// Delays operations. Those that wait equally long go on in the order they came.
pub struct Delay {
    pauses: [Pause; OpKind::ALL.len()],
    random: Arc<Mutex<Random>>,
}

impl Delay {
    /// `pauses` by [`OpKind`] number. Random pauses come in the same sequence for the same
    /// `seed`.
    pub fn new(pauses: [Pause; OpKind::ALL.len()], seed: u64) -> Delay {
        Delay {
            pauses,
            random: Arc::new(Mutex::new(Random::new(seed))),
        }
    }
}

impl Layer for Delay {
    fn wrap(&self, below: Box<dyn Engine>, _local: &Local) -> Box<dyn Engine> {
        Box::new(DelayEngine {
            below,
            pauses: self.pauses,
            random: self.random.clone(),
            waiting: BinaryHeap::new(),
            taken: 0,
            cancelled: Cancelled::default(),
        })
    }
}

struct DelayEngine {
    below: Box<dyn Engine>,
    pauses: [Pause; OpKind::ALL.len()],
    random: Arc<Mutex<Random>>,
    waiting: BinaryHeap<Waiting>,
    /// Operations that had to wait, ever: their order.
    taken: u64,
    cancelled: Cancelled,
}

impl DelayEngine {
    fn draw(&self, pause: Pause) -> Duration {
        let spread = pause.most.saturating_sub(pause.least);
        if spread.is_zero() {
            return pause.least;
        }
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        pause.least + spread.mul_f64(random.fraction())
    }
}

impl Engine for DelayEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let pause = self.draw(self.pauses[OpKind::of(&op) as usize]);
        if pause.is_zero() {
            return self.below.submit(token, op);
        }
        self.taken += 1;
        self.waiting.push(Waiting {
            due: Instant::now() + pause,
            number: self.taken,
            held: Held { token, op },
        });
        Submitted::Pending
    }

    fn flush(&mut self) {
        self.below.flush();
    }

    fn cancel(&mut self, token: Token) {
        let cancelled = &mut self.cancelled;
        self.waiting.retain(|waiting| {
            let stays = waiting.held.token != token;
            if !stays {
                cancelled.add(token);
            }
            stays
        });
        self.below.cancel(token);
    }

    fn completed(&mut self, completion: &mut Completion) {
        self.below.completed(completion);
    }

    fn deadline(&self) -> Option<Instant> {
        earliest([
            self.waiting.peek().map(|first| first.due),
            self.cancelled.deadline(),
            self.below.deadline(),
        ])
    }

    fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        self.below.expire(now, ended);
        self.cancelled.take(ended);
        while self.waiting.peek().is_some_and(|first| first.due <= now)
            && let Some(first) = self.waiting.pop()
        {
            first.held.go_on(self.below.as_mut(), ended);
        }
    }
}

struct Waiting {
    due: Instant,
    number: u64,
    held: Held,
}

impl Ord for Waiting {
    /// The greatest, which a heap gives first, is the one due first.
    fn cmp(&self, other: &Waiting) -> Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.number == other.number
    }
}

impl Eq for Waiting {}
