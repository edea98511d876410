//! Layer `error`: operations fail by rules that can change while it serves. What fails does not
//! reach the backend.

use super::kinds::extent_of;
use super::random::Random;
use super::{Layer, OpKind, OpKinds};
use crate::Extent;
use crate::backend::{Completion, Engine, Local, Op, Submitted, Token};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Which operations fail, and how.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Operations of these kinds.
    pub kinds: OpKinds,
    /// Only those that touch a byte of this range; a flush touches none. `None`: wherever.
    pub range: Option<Extent>,
    /// How they end.
    pub errno: Errno,
    /// So many of them pass first.
    pub after: u64,
    /// The probability that one fails then, from 0 to 1.
    pub rate: f64,
    /// At most so many fail. `None`: no limit.
    pub count: Option<u64>,
}

/// A rule's number: rules are numbered from 0 in the order they came, also across
/// [`Faults::clear`].
pub type RuleId = usize;

/// Rules, for any number of disks. The first rule that an operation fails by counts it; later
/// ones do not see it.
pub struct Faults {
    /// Whether there is any rule: no lock for every operation while there is none.
    is_armed: AtomicBool,
    state: Mutex<State>,
}

struct State {
    random: Random,
    rules: Vec<Counted>,
    /// Hits of rules that are gone.
    cleared: Vec<u64>,
}

struct Counted {
    rule: Rule,
    passed: u64,
    hits: u64,
}

impl Faults {
    /// Without rules. Rates draw from one sequence, the same for the same `seed`.
    pub fn new(seed: u64) -> Faults {
        Faults {
            is_armed: AtomicBool::new(false),
            state: Mutex::new(State {
                random: Random::new(seed),
                rules: Vec::new(),
                cleared: Vec::new(),
            }),
        }
    }

    /// One more rule, after the others; every operation submitted from now on is held to it.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.lock();
        state.rules.push(Counted {
            rule,
            passed: 0,
            hits: 0,
        });
        self.is_armed.store(true, Ordering::Release);
        state.cleared.len() + state.rules.len() - 1
    }

    /// No rules any more; what they did stays counted.
    pub fn clear(&self) {
        let state = &mut *self.lock();
        let hits = state.rules.drain(..).map(|counted| counted.hits);
        state.cleared.extend(hits);
        self.is_armed.store(false, Ordering::Release);
    }

    /// How many operations each rule has failed, those that are gone too, by [`RuleId`].
    pub fn hits(&self) -> Vec<u64> {
        let state = self.lock();
        let now = state.rules.iter().map(|counted| counted.hits);
        state.cleared.iter().copied().chain(now).collect()
    }

    fn check(&self, op: &Op) -> Result<(), Errno> {
        if !self.is_armed.load(Ordering::Acquire) {
            return Ok(());
        }
        let state = &mut *self.lock();
        let (kind, extent) = (OpKind::of(op), extent_of(op));
        let rules = &mut state.rules;
        let hit = rules
            .iter_mut()
            .find_map(|counted| counted.strikes(kind, extent, &mut state.random));
        hit.map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn strikes(
        &mut self,
        kind: OpKind,
        extent: Option<Extent>,
        random: &mut Random,
    ) -> Option<Errno> {
        let rule = &self.rule;
        if !rule.kinds.contains(kind) || !touches(rule.range, extent) {
            return None;
        }
        if rule.count.is_some_and(|count| self.hits >= count) {
            return None;
        }
        if self.passed < rule.after {
            self.passed += 1;
            return None;
        }
        if rule.rate < 1.0 && random.fraction() >= rule.rate {
            return None;
        }
        self.hits += 1;
        Some(rule.errno)
    }
}

fn touches(range: Option<Extent>, extent: Option<Extent>) -> bool {
    let Some(range) = range else {
        return true;
    };
    extent.is_some_and(|extent| extent.offset().max(range.offset()) < extent.end().min(range.end()))
}

/// Fails operations by the rules of `faults`.
pub struct ErrorLayer {
    faults: Arc<Faults>,
}

impl ErrorLayer {
    /// With rules that others may share.
    pub fn new(faults: Arc<Faults>) -> ErrorLayer {
        ErrorLayer { faults }
    }
}

impl Layer for ErrorLayer {
    fn wrap(&self, below: Box<dyn Engine>, _local: &Local) -> Box<dyn Engine> {
        Box::new(ErrorEngine {
            below,
            faults: self.faults.clone(),
        })
    }
}

struct ErrorEngine {
    below: Box<dyn Engine>,
    faults: Arc<Faults>,
}

impl Engine for ErrorEngine {
    fn submit(&mut self, token: Token, op: Op) -> Submitted {
        match self.faults.check(&op) {
            Ok(()) => self.below.submit(token, op),
            Err(errno) => Submitted::Done(Err(errno)),
        }
    }

    fn flush(&mut self) {
        self.below.flush();
    }

    fn cancel(&mut self, token: Token) {
        self.below.cancel(token);
    }

    fn completed(&mut self, completion: &mut Completion) {
        self.below.completed(completion);
    }

    fn deadline(&self) -> Option<Instant> {
        self.below.deadline()
    }

    fn expire(&mut self, now: Instant, ended: &mut Vec<Completion>) {
        self.below.expire(now, ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Kind;
    use crate::layers::testing::{Bench, extent};

    const EVERY: Rule = Rule {
        kinds: OpKinds::ALL,
        range: None,
        errno: Errno::IO,
        rate: 1.0,
        after: 0,
        count: None,
    };

    fn discard(offset: u64, len: u64) -> Op {
        Op::Discard {
            extent: extent(offset, len),
        }
    }

    /// Which of `count` flushes fail.
    fn failing(faults: &Faults, count: usize) -> Vec<usize> {
        (0..count)
            .filter(|_| faults.check(&Op::Flush).is_err())
            .collect()
    }

    #[test]
    fn what_fails_does_not_reach_the_backend() {
        let faults = Arc::new(Faults::new(0));
        let mut bench = Bench::new(ErrorLayer::new(faults.clone()), Kind::Direct);
        let mut submit = |op| bench.engine.submit(Token(1), op);
        assert_eq!(submit(Op::Flush), Submitted::Pending);
        faults.add(Rule {
            kinds: [OpKind::Flush].into_iter().collect(),
            errno: Errno::OPNOTSUPP,
            ..EVERY
        });
        assert_eq!(submit(Op::Flush), Submitted::Done(Err(Errno::OPNOTSUPP)));
        assert_eq!(submit(discard(0, 512)), Submitted::Pending);
        faults.clear();
        assert_eq!(submit(Op::Flush), Submitted::Pending);
        assert_eq!(bench.reached(), ["1 flush", "1 discard 0", "1 flush"]);
        assert_eq!(faults.hits(), [1]);
    }

    #[test]
    fn a_range_takes_what_touches_it() {
        let faults = Faults::new(0);
        faults.add(Rule {
            range: Some(extent(4096, 1024)),
            ..EVERY
        });
        let fails = |op| faults.check(&op).is_err();
        for (offset, len) in [
            (4096, 512),
            (4608, 512),
            (0, 4608),
            (5000, 8192),
            (0, 1 << 20),
        ] {
            assert!(fails(discard(offset, len)), "{offset} {len}");
        }
        // The last two hold no byte.
        for (offset, len) in [(0, 4096), (5120, 512), (4096, 0), (4608, 0)] {
            assert!(!fails(discard(offset, len)), "{offset} {len}");
        }
        assert!(!fails(Op::Flush));
        assert_eq!(faults.hits(), [5]);
    }

    #[test]
    fn so_many_pass_first_and_so_many_fail_then() {
        let faults = Faults::new(0);
        faults.add(Rule {
            after: 3,
            count: Some(2),
            ..EVERY
        });
        assert_eq!(failing(&faults, 10), [3, 4]);
    }

    #[test]
    fn the_first_rule_counts_and_numbers_stay() {
        let faults = Faults::new(0);
        let once = Rule {
            count: Some(1),
            ..EVERY
        };
        assert_eq!([faults.add(once), faults.add(EVERY)], [0, 1]);
        failing(&faults, 3);
        faults.clear();
        assert_eq!(failing(&faults, 3), []);
        assert_eq!(faults.add(once), 2);
        failing(&faults, 3);
        assert_eq!(faults.hits(), [1, 2, 1]);
    }

    #[test]
    fn a_rate_comes_again_with_its_seed() {
        let draw = |seed| {
            let faults = Faults::new(seed);
            faults.add(Rule { rate: 0.1, ..EVERY });
            failing(&faults, 10_000)
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert!((900..1_100).contains(&draw(5).len()));
        let never = Faults::new(0);
        never.add(Rule { rate: 0.0, ..EVERY });
        assert_eq!(failing(&never, 1_000), []);
    }
}
