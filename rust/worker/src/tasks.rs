//! The tasks of one worker: which are hot, and which have named a time.

use crate::patience::Patience;
use crate::task::{Next, Task, TaskId, Turn};
use crate::watches::Watches;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Instant;

struct Entry {
    id: TaskId,
    task: Box<dyn Task>,
    is_hot: bool,
    /// When a task that is not hot wants to be.
    deadline: Option<Instant>,
    patience: Patience,
    /// As it was after its last run.
    needs_events: bool,
}

/// The tasks of one worker.
pub(crate) struct Tasks {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    runs: u64,
    hot: Vec<usize>,
    deadlines: BTreeSet<(Instant, TaskId)>,
    watches: Rc<Watches>,
    /// The last round had work.
    has_worked: bool,
}

impl Tasks {
    pub(crate) fn new(watches: Rc<Watches>) -> Tasks {
        Tasks {
            entries: Vec::new(),
            free: Vec::new(),
            runs: 0,
            hot: Vec::new(),
            deadlines: BTreeSet::new(),
            watches,
            has_worked: false,
        }
    }

    /// Adds what `make` makes, hot.
    pub(crate) fn add(&mut self, make: impl FnOnce(TaskId) -> Option<Box<dyn Task>>) {
        let key = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.runs += 1;
        let id = TaskId {
            key,
            run: self.runs,
        };
        match catch_unwind(AssertUnwindSafe(|| make(id))) {
            Ok(Some(task)) => {
                self.entries[key] = Some(Entry {
                    id,
                    task,
                    is_hot: true,
                    deadline: None,
                    patience: Patience::default(),
                    needs_events: true,
                });
                self.hot.push(key);
            }
            Ok(None) | Err(_) => {
                self.watches.forget(id);
                self.free.push(key);
            }
        }
    }

    pub(crate) fn has_hot(&self) -> bool {
        !self.hot.is_empty()
    }

    /// Whether an event could bring news: to a task that is not hot, or one that is and does not
    /// find everything by itself.
    pub(crate) fn needs_events(&self) -> bool {
        let all = self.entries.len() - self.free.len();
        let needs = |&key: &usize| self.entries[key].as_ref().is_some_and(|it| it.needs_events);
        self.hot.len() < all || self.hot.iter().any(needs)
    }

    /// Makes a task hot.
    fn wake(&mut self, id: TaskId) {
        if let Some(Some(entry)) = self.entries.get_mut(id.key)
            && entry.id == id
        {
            entry.patience.renew();
            if let Some(deadline) = entry.deadline.take() {
                self.deadlines.remove(&(deadline, id));
            }
            if !std::mem::replace(&mut entry.is_hot, true) {
                self.hot.push(id.key);
            }
        }
    }

    /// Makes a task hot and tells it why: of an event, or that it was woken.
    pub(crate) fn tell(&mut self, id: TaskId, what: impl FnOnce(&mut dyn Task)) {
        self.wake(id);
        if let Some(Some(entry)) = self.entries.get_mut(id.key)
            && entry.id == id
            && catch_unwind(AssertUnwindSafe(|| what(&mut *entry.task))).is_err()
        {
            self.end(id.key);
        }
    }

    /// Runs all hot tasks once; whether there was work.
    pub(crate) fn round(&mut self) -> bool {
        let mut worked = false;
        let mut at = 0;
        while let Some(&key) = self.hot.get(at) {
            match self.run(key) {
                None => self.end(key),
                Some(Turn::Worked) => {
                    worked = true;
                    at += 1;
                }
                Some(Turn::Idle) => {
                    if self.stays_hot(key) || !self.cool(at) {
                        at += 1;
                    }
                }
            }
        }
        self.has_worked = worked;
        worked
    }

    /// `None`: the task is over.
    fn run(&mut self, key: usize) -> Option<Turn> {
        let entry = self.entries[key].as_mut()?;
        let run = AssertUnwindSafe(|| {
            let turn = entry.task.run();
            (!entry.task.is_over()).then(|| (turn, entry.task.needs_events()))
        });
        let (turn, needs_events) = catch_unwind(run).unwrap_or(None)?;
        entry.needs_events = needs_events;
        if turn == Turn::Worked {
            entry.patience.renew();
        }
        Some(turn)
    }

    /// Whether a task without work stays hot.
    fn stays_hot(&mut self, key: usize) -> bool {
        let entry = self.entries[key].as_mut();
        entry.is_none_or(|entry| entry.patience.lasts(self.has_worked))
    }

    /// Arms all hot tasks; those with work stay hot.
    pub(crate) fn cool_all(&mut self) {
        let mut at = 0;
        while at < self.hot.len() {
            if !self.cool(at) {
                at += 1;
            }
        }
    }

    /// Arms the hot task at this place of the list; whether it has left the list.
    fn cool(&mut self, at: usize) -> bool {
        let key = self.hot[at];
        let Some(entry) = &mut self.entries[key] else {
            self.hot.swap_remove(at);
            return true;
        };
        entry.patience.renew();
        match catch_unwind(AssertUnwindSafe(|| entry.task.arm())) {
            Ok(Next::Now) => return false,
            Ok(Next::Event) => {}
            Ok(Next::At(deadline)) => {
                entry.deadline = Some(deadline);
                self.deadlines.insert((deadline, entry.id));
            }
            Err(_) => {
                self.end(key);
                return true;
            }
        }
        entry.is_hot = false;
        self.hot.swap_remove(at);
        true
    }

    /// The earliest time that a task has named.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Some(self.deadlines.first()?.0)
    }

    /// Makes those hot whose time has come.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.wake(id);
        }
    }

    /// Drops a task.
    fn end(&mut self, key: usize) {
        let Some(entry) = self.entries[key].take() else {
            return;
        };
        self.hot.retain(|&hot| hot != key);
        if let Some(deadline) = entry.deadline {
            self.deadlines.remove(&(deadline, entry.id));
        }
        let id = entry.id;
        // Its own watches it ends itself, as it still has the fds.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(entry)));
        self.watches.forget(id);
        self.free.push(key);
    }

    /// Drops all tasks.
    pub(crate) fn end_all(&mut self) {
        (0..self.entries.len()).for_each(|key| self.end(key));
    }
}
