//! How other threads reach a worker's queues: commands and completions, and a bell that tells
//! the worker of them.

use crate::backend::Completion;
use crate::command::Command;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What waits for a worker.
#[derive(Default)]
pub(crate) struct Mail {
    pub(crate) commands: Vec<Command>,
    pub(crate) completions: Vec<Completion>,
    /// Deadlines of engines may be others now.
    pub(crate) has_new_deadlines: bool,
    /// The bell was rung for this.
    is_waiting: bool,
}

type Bell = Box<dyn Fn() + Send + Sync>;

/// The letter box of one worker's queues.
pub(crate) struct Mailbox {
    /// `None` once the queues have ended: letters are dropped.
    mail: Mutex<Option<Mail>>,
    /// Rung after every letter into an empty box. Who sets it looks into the box afterwards.
    bell: OnceLock<Bell>,
}

impl Mailbox {
    pub(crate) fn new() -> Arc<Mailbox> {
        Arc::new(Mailbox {
            mail: Mutex::new(Some(Mail::default())),
            bell: OnceLock::new(),
        })
    }

    /// Who is told of letters; only the first counts.
    pub(crate) fn set_bell(&self, bell: impl Fn() + Send + Sync + 'static) {
        let _ = self.bell.set(Box::new(bell));
    }

    pub(crate) fn send(&self, command: Command) {
        self.put(|mail| mail.commands.push(command));
    }

    /// Takes everything; `into` is empty and lends its memory.
    pub(crate) fn take(&self, into: &mut Mail) {
        into.is_waiting = false;
        if let Some(mail) = &mut *self.lock() {
            std::mem::swap(mail, into);
        }
    }

    /// The queues have ended.
    pub(crate) fn close(&self) {
        let rest = self.lock().take();
        // Not under the lock: what is dropped may own anything.
        drop(rest);
    }

    fn put(&self, add: impl FnOnce(&mut Mail)) {
        let had_mail = {
            let mut mail = self.lock();
            let Some(mail) = &mut *mail else {
                return;
            };
            add(mail);
            std::mem::replace(&mut mail.is_waiting, true)
        };
        if !had_mail && let Some(bell) = self.bell.get() {
            bell();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes completions for one worker, from any thread.
#[derive(Clone)]
pub struct Completer(Arc<Mailbox>);

impl Completer {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Completer {
        Completer(mailbox)
    }

    /// Whether both are of one worker.
    pub fn is_same(&self, other: &Completer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Wakes the worker: an engine's deadline may be another one now.
    pub fn wake(&self) {
        self.0.put(|mail| mail.has_new_deadlines = true);
    }

    /// Delivers a completion; the worker is woken.
    pub fn complete(&self, completion: Completion) {
        self.0.put(|mail| mail.completions.push(completion));
    }

    /// Delivers a batch of completions at once.
    pub fn complete_all(&self, mut completions: Vec<Completion>) {
        if !completions.is_empty() {
            self.0.put(|mail| mail.completions.append(&mut completions));
        }
    }
}
