//! Answers on their way to the worker, several at a time.
//!
//! They come one by one, on librbd's thread, and waking a worker for one costs more than serving
//! it. While many requests are under way the next answers are near: some are gathered, as many as
//! the worker has asked for, and handed over together.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vduse_device::Completer;
use vduse_device::backend::Completion;

/// Answers to this share of what is under way are handed over together: on average one waits for
/// others for half of this share of the time that its request takes.
const SHARE: usize = 8;
/// No answer is held longer. Where they come more slowly than this, none is held.
pub(crate) const LONGEST: Duration = Duration::from_micros(500);

/// How many answers are handed over together, with so many requests under way, and so long between
/// the last two answers.
pub(crate) fn enough(under_way: usize, gap: Option<Duration>) -> usize {
    match gap {
        Some(gap) if gap < LONGEST => (under_way / SHARE).max(1),
        _ => 1,
    }
}

/// What a virtqueue's answers pass.
pub(crate) struct Gather {
    completer: Completer,
    held: Mutex<Held>,
}

struct Held {
    answers: Vec<Completion>,
    /// With so many they are handed over; 1: at once.
    enough: usize,
}

impl Gather {
    /// At first every answer is handed over at once.
    pub(crate) fn new(completer: Completer) -> Gather {
        Gather {
            completer,
            held: Mutex::new(Held {
                answers: Vec::new(),
                enough: 1,
            }),
        }
    }

    /// Takes an answer, from any thread.
    pub(crate) fn put(&self, answer: Completion) {
        let mut held = self.lock();
        held.answers.push(answer);
        self.hand_over(held);
    }

    /// From now on so many are enough.
    pub(crate) fn ask(&self, enough: usize) {
        let mut held = self.lock();
        held.enough = enough;
        self.hand_over(held);
    }

    /// What is held now, for the worker itself; the next answer is handed over at once.
    pub(crate) fn take(&self) -> Vec<Completion> {
        let mut held = self.lock();
        held.enough = 1;
        std::mem::take(&mut held.answers)
    }

    fn hand_over(&self, mut held: MutexGuard<'_, Held>) {
        if held.answers.len() >= held.enough {
            let answers = std::mem::take(&mut held.answers);
            // The worker may be faster than this thread.
            drop(held);
            self.completer.complete_all(answers);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vduse_device::backend::{Inbox, Token};

    const NEAR: Option<Duration> = Some(Duration::from_micros(100));

    fn answer(token: u64) -> Completion {
        Completion {
            token: Token(token),
            result: Ok(()),
            data: None,
        }
    }

    fn tokens(answers: Vec<Completion>) -> Vec<u64> {
        answers.iter().map(|answer| answer.token.0).collect()
    }

    #[test]
    fn an_eighth_of_many_is_enough_and_one_of_few() {
        let together = [0, 1, 15, 16, 32, 256].map(|under_way| enough(under_way, NEAR));
        assert_eq!(together, [1, 1, 1, 2, 4, 32]);
    }

    #[test]
    fn where_answers_are_rare_none_waits_for_another() {
        assert_eq!(enough(256, None), 1);
        assert_eq!(enough(256, Some(LONGEST)), 1);
    }

    #[test]
    fn answers_are_handed_over_once_they_are_enough() {
        let (inbox, local) = Inbox::new();
        let gather = Gather::new(local.completer.clone());
        gather.put(answer(1));
        assert_eq!(tokens(inbox.take()), [1]);
        gather.ask(3);
        gather.put(answer(2));
        gather.put(answer(3));
        assert!(inbox.take().is_empty());
        gather.put(answer(4));
        assert_eq!(tokens(inbox.take()), [2, 3, 4]);
        // Fewer are enough now.
        gather.put(answer(5));
        gather.ask(1);
        assert_eq!(tokens(inbox.take()), [5]);
    }

    #[test]
    fn who_has_taken_what_was_held_gets_the_next_answer_at_once() {
        let (inbox, local) = Inbox::new();
        let gather = Gather::new(local.completer.clone());
        gather.ask(9);
        gather.put(answer(1));
        assert_eq!(tokens(gather.take()), [1]);
        gather.put(answer(2));
        assert_eq!(tokens(inbox.take()), [2]);
    }
}
