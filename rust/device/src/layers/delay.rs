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

impl Pause {
    fn draw(self, random: &mut Random) -> Duration {
        let spread = self.most.saturating_sub(self.least);
        self.least + spread.mul_f64(random.fraction())
    }
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
    fn pause(&self, kind: OpKind) -> Duration {
        let pause = self.pauses[kind as usize];
        if pause.least == pause.most {
            return pause.least;
        }
        pause.draw(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine for DelayEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        let pause = self.pause(OpKind::of(&op));
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
        if !self.waiting.is_empty() {
            self.cancelled.add(token);
        }
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
        self.cancelled.sweep(ended, |stays| {
            self.waiting.retain(|waiting| stays(&waiting.held));
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Kind;
    use crate::layers::testing::{Bench, extent};
    use rustix::io::Errno;

    const HOUR: Duration = Duration::from_secs(3600);

    fn exactly(pause: Duration) -> Pause {
        Pause {
            least: pause,
            most: pause,
        }
    }

    /// Writes and discards wait an hour, flushes two, reads and zeroes not at all.
    fn bench(kind: Kind) -> Bench {
        let (none, one, two) = (Pause::default(), exactly(HOUR), exactly(2 * HOUR));
        Bench::new(Delay::new([none, one, two, one, none], 0), kind)
    }

    fn discard(offset: u64) -> Op {
        Op::Discard {
            extent: extent(offset, 512),
        }
    }

    fn zeroes(offset: u64) -> Op {
        Op::WriteZeroes {
            extent: extent(offset, 512),
            may_unmap: false,
        }
    }

    #[test]
    fn each_kind_waits_its_own_time_and_equals_keep_their_order() {
        let mut bench = bench(Kind::Direct);
        let start = Instant::now();
        assert_eq!(bench.engine.deadline(), None);
        for (token, op) in [
            (1, Op::Flush),
            (2, discard(512)),
            (3, zeroes(0)),
            (2, discard(1024)),
            (4, discard(0)),
        ] {
            assert_eq!(bench.engine.submit(Token(token), op), Submitted::Pending);
        }
        assert_eq!(bench.reached(), ["3 write_zeroes 0"]);
        let due = bench.engine.deadline().unwrap();
        assert!(due >= start + HOUR && due <= Instant::now() + HOUR);
        assert_eq!(bench.expire(start + HOUR - Duration::from_nanos(1)), []);
        assert!(bench.reached().is_empty());
        assert_eq!(bench.expire(Instant::now() + HOUR), []);
        let three = ["2 discard 512", "2 discard 1024", "4 discard 0"];
        assert_eq!(bench.reached(), three);
        let due = bench.engine.deadline().unwrap();
        assert!(due >= start + 2 * HOUR);
        assert_eq!(bench.expire(due), []);
        assert_eq!(bench.reached(), ["1 flush"]);
        assert_eq!(bench.engine.deadline(), None);
    }

    #[test]
    fn what_ends_at_once_ends_by_expire() {
        let memory = Arc::new(crate::backend::Memory::new(4096).unwrap());
        let layer = Delay::new([exactly(HOUR); 5], 0);
        let mut bench = Bench::on(memory, layer);
        bench.engine.submit(Token(1), Op::Flush);
        bench.engine.submit(Token(2), discard(4096));
        let ended = bench.expire(Instant::now() + HOUR);
        assert_eq!(ended, [(1, Ok(())), (2, Err(Errno::NOSPC))]);
    }

    #[test]
    fn a_cancelled_request_ends_at_once_and_others_stay() {
        let mut bench = bench(Kind::Direct);
        bench.engine.submit(Token(1), discard(0));
        bench.engine.submit(Token(2), discard(512));
        bench.engine.submit(Token(1), discard(1024));
        bench.engine.cancel(Token(1));
        assert_eq!(bench.reached(), ["cancel 1"]);
        let now = Instant::now();
        assert!(bench.engine.deadline().unwrap() <= now);
        let ended = bench.expire(now);
        assert_eq!(
            ended,
            [(1, Err(Errno::CANCELED)), (1, Err(Errno::CANCELED))]
        );
        assert!(bench.engine.deadline().unwrap() > now);
        assert_eq!(bench.expire(now + 2 * HOUR), []);
        assert_eq!(bench.reached(), ["2 discard 512"]);
    }

    #[test]
    fn random_pauses_lie_in_their_range_and_come_again_with_their_seed() {
        let pause = Pause {
            least: HOUR,
            most: 2 * HOUR,
        };
        let draw = |seed| {
            let layer = Delay::new([pause; 5], seed);
            let mut random = layer.random.lock().unwrap();
            (0..100)
                .map(|_| pause.draw(&mut random))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert!(
            draw(3)
                .iter()
                .all(|drawn| (HOUR..=2 * HOUR).contains(drawn))
        );
    }
}
