//! The calls that wait for an answer from outside.

use crate::decode::Look;
use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many may wait before those are looked for whose callers are gone.
const FIRST_LOOK: usize = 1024;

/// What a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// An open of a path.
    Open { path: Vec<u8>, flags: u64 },
    /// A stat, access or readlink call on a path.
    Look {
        path: Vec<u8>,
        flags: i32,
        look: Look,
    },
    /// An ioctl on a node.
    Ioctl {
        key: u64,
        nr: u32,
        argument: u64,
        payload: Vec<u8>,
    },
}

/// A call as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Its notification's.
    pub(crate) id: u64,
    /// The calling thread.
    pub(crate) tid: u32,
    pub(crate) subject: Subject,
}

#[derive(Debug)]
struct State {
    /// Not taken yet.
    queue: VecDeque<Call>,
    /// Not answered yet, taken or not: ids.
    open: HashSet<u64>,
    look_at: usize,
}

/// The calls of one program.
#[derive(Debug)]
pub(crate) struct Calls(Mutex<State>);

impl Calls {
    pub(crate) fn new() -> Calls {
        Calls(Mutex::new(State {
            queue: VecDeque::new(),
            open: HashSet::new(),
            look_at: FIRST_LOOK,
        }))
    }

    /// One more. Living threads have one each, so those of dead ones are what has to be kept from
    /// piling up: `waits` says whether a call still waits.
    pub(crate) fn add(&self, call: Call, waits: impl Fn(u64) -> bool) {
        let mut state = self.lock();
        if state.queue.len() >= state.look_at {
            let State { queue, open, .. } = &mut *state;
            queue.retain(|call| waits(call.id) || !open.remove(&call.id));
            state.look_at = FIRST_LOOK.max(2 * state.queue.len());
        }
        state.open.insert(call.id);
        state.queue.push_back(call);
    }

    /// All that were not taken yet.
    pub(crate) fn take(&self) -> VecDeque<Call> {
        std::mem::take(&mut self.lock().queue)
    }

    /// Somebody answers the call; false: it needs no answer any more.
    pub(crate) fn claim(&self, id: u64) -> bool {
        self.lock().open.remove(&id)
    }

    /// Nobody will answer any more: those that are open.
    pub(crate) fn end(&self) -> HashSet<u64> {
        let mut state = self.lock();
        state.queue.clear();
        std::mem::take(&mut state.open)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: u64) -> Call {
        let (path, flags) = (b"/dev/vduse/control".to_vec(), 0);
        Call {
            id,
            tid: 1,
            subject: Subject::Open { path, flags },
        }
    }

    fn ids(calls: &Calls) -> Vec<u64> {
        calls.take().into_iter().map(|call| call.id).collect()
    }

    #[test]
    fn calls_are_taken_in_order_and_answered_once() {
        let calls = Calls::new();
        calls.add(call(3), |_| true);
        calls.add(call(1), |_| true);
        assert_eq!(ids(&calls), [3, 1]);
        assert_eq!(ids(&calls), []);
        assert!(calls.claim(3));
        assert!(!calls.claim(3));
        assert_eq!(calls.end(), HashSet::from([1]));
        assert!(!calls.claim(1));
    }

    #[test]
    fn calls_of_dead_threads_do_not_pile_up() {
        let calls = Calls::new();
        let alive = |id| id % 2 == 0;
        for id in 0..10_000 {
            calls.add(call(id), alive);
        }
        let left = ids(&calls);
        assert!(left.iter().filter(|id| alive(**id)).count() == 5_000);
        assert!(left.len() < 8_000);
    }

    #[test]
    fn what_is_left_out_is_not_open_any_more() {
        let calls = Calls::new();
        for id in 0..=FIRST_LOOK as u64 {
            calls.add(call(id), |_| false);
        }
        assert_eq!(calls.end(), HashSet::from([FIRST_LOOK as u64]));
    }
}
