//! A worker's letter box. Who posts into it learns whether the worker has to be woken.
//!
//! No wake-up is lost: the worker says that it sleeps under the lock under which it finds the
//! box empty, so a letter is either found there or its sender finds the worker asleep. The model
//! below runs this over all interleavings.

#[cfg(loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering::Relaxed},
};
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering::Relaxed},
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Awake,
    /// Sleeps, or is about to: the next letter wakes it.
    Asleep,
    /// Has ended: letters are dropped.
    Gone,
}

struct Content<L> {
    letters: Vec<L>,
    reader: Reader,
}

/// Letters from any thread to one worker.
pub(crate) struct Mailbox<L> {
    content: Mutex<Content<L>>,
    /// A letter is there; looked at without the lock, to be sure under it.
    hint: AtomicBool,
}

impl<L> Mailbox<L> {
    /// Empty, of a worker that is awake.
    pub(crate) fn new() -> Mailbox<L> {
        Mailbox {
            content: Mutex::new(Content {
                letters: Vec::new(),
                reader: Reader::Awake,
            }),
            hint: AtomicBool::new(false),
        }
    }

    /// Leaves a letter; true if the worker must be woken.
    pub(crate) fn post(&self, letter: L) -> bool {
        let mut content = self.lock();
        if content.reader == Reader::Gone {
            // The letter is dropped after the lock is given back: it may own anything.
            return false;
        }
        content.letters.push(letter);
        self.hint.store(true, Relaxed);
        let was_asleep = content.reader == Reader::Asleep;
        content.reader = Reader::Awake;
        was_asleep
    }

    /// Whether there probably are letters.
    pub(crate) fn may_have_letters(&self) -> bool {
        self.hint.load(Relaxed)
    }

    /// The worker is awake and takes everything; `into` is empty and lends its memory.
    pub(crate) fn take(&self, into: &mut Vec<L>) {
        let mut content = self.lock();
        content.reader = Reader::Awake;
        self.hint.store(false, Relaxed);
        std::mem::swap(&mut content.letters, into);
    }

    /// Whether the worker can sleep: from now on the first letter wakes it.
    pub(crate) fn can_sleep(&self) -> bool {
        let mut content = self.lock();
        if !content.letters.is_empty() {
            return false;
        }
        content.reader = Reader::Asleep;
        true
    }

    /// The worker has ended.
    pub(crate) fn close(&self) {
        let mut content = self.lock();
        content.reader = Reader::Gone;
        let rest = std::mem::take(&mut content.letters);
        drop(content);
        // Not under the lock: what is dropped may own anything.
        drop(rest);
    }

    fn lock(&self) -> MutexGuard<'_, Content<L>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::Mailbox;
    use loom::sync::{Arc, Notify};

    /// Two senders and a worker that sleeps whenever it may: all letters arrive. A lost
    /// wake-up is a deadlock, which loom reports.
    #[test]
    fn loom_no_letter_is_slept_over() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3); // keeps three threads to seconds
        model.check(|| {
            let mailbox = Arc::new(Mailbox::new());
            // The eventfd: a signal stays until the worker has waited for it.
            let bell = Arc::new(Notify::new());
            for letter in 0..2 {
                let (mailbox, bell) = (mailbox.clone(), bell.clone());
                loom::thread::spawn(move || {
                    if mailbox.post(letter) {
                        bell.notify();
                    }
                });
            }
            let (mut letters, mut seen) = (Vec::new(), 0);
            while seen < 2 {
                if mailbox.can_sleep() {
                    bell.wait();
                }
                mailbox.take(&mut letters);
                seen += letters.drain(..).count();
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeping_worker_is_woken_and_only_once() {
        let mailbox = Mailbox::new();
        assert!(!mailbox.post(1));
        assert!(mailbox.may_have_letters());
        assert!(!mailbox.can_sleep(), "a letter is there");
        let mut letters = Vec::new();
        mailbox.take(&mut letters);
        assert!(!mailbox.may_have_letters());
        assert!(mailbox.can_sleep());
        assert!(mailbox.post(2));
        assert!(!mailbox.post(3));
        letters.clear();
        mailbox.take(&mut letters);
        assert_eq!(letters, [2, 3]);
    }

    #[test]
    fn letters_to_a_worker_that_has_ended_are_dropped() {
        let mailbox = Mailbox::new();
        let letter = std::rc::Rc::new(());
        mailbox.post(letter.clone());
        mailbox.close();
        assert!(!mailbox.post(letter.clone()));
        assert_eq!(std::rc::Rc::strong_count(&letter), 1);
    }
}
