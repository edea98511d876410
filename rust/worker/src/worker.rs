//! A worker's loop.

use crate::place::{Letter, Line, Place};
use crate::tasks::Tasks;
use crate::watches::Watches;
use rustix::event::epoll;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long fds are not looked at while tasks are hot: a look is a system call, and hot tasks do
/// not wait for it. Doubled while every look brings something, as from a client that has many
/// requests under way: it does not wait for us, and both sides take more at a time.
const LOOK_EVERY: [Duration; 2] = [Duration::from_micros(5), Duration::from_micros(10)];

/// The same while no event can bring news: every queue on the worker is hot, and looked at in
/// memory.
const LOOK_SELDOM: Duration = Duration::from_micros(100);

pub(crate) struct Worker {
    line: Arc<Line>,
    watches: Rc<Watches>,
    tasks: Tasks,
    events: Vec<epoll::Event>,
    letters: Vec<Letter>,
    /// When fds were last looked at.
    looked: Instant,
    /// When they are to be looked at again.
    pause: Duration,
    /// Rounds in a row that had work.
    streak: u32,
    is_quitting: bool,
}

impl Worker {
    /// Serves until told to quit. `watches` is the thread's own.
    pub(crate) fn serve(line: Arc<Line>, watches: Watches) {
        let watches = Rc::new(watches);
        let mut worker = Worker {
            line,
            tasks: Tasks::new(watches.clone()),
            watches,
            events: Vec::new(),
            letters: Vec::new(),
            looked: Instant::now(),
            pause: LOOK_EVERY[0],
            streak: 0,
            is_quitting: false,
        };
        let line = worker.line.clone();
        while !worker.is_quitting {
            // Where a round's work is the last for now, to sleep is to look at fds: one system call
            // less for who waits long.
            if !worker.look(worker.streak > 1) {
                line.spin.wait(|may_sleep| match may_sleep {
                    false => worker.look(true),
                    true => worker.sleep(),
                });
            }
        }
        worker.tasks.end_all();
        worker.line.mailbox.close();
    }

    /// Looks everywhere without waiting, at fds where that `may_be_due`, and not every time; whether
    /// there was anything.
    fn look(&mut self, may_be_due: bool) -> bool {
        let mut found = false;
        if self.line.mailbox.may_have_letters() {
            self.read_mail();
            found = true;
        }
        let now = Instant::now();
        // After letters always: what happened before one was sent is seen before it is acted on.
        let pause = match self.tasks.needs_events() {
            true => self.pause,
            false => LOOK_SELDOM,
        };
        let is_due = !self.tasks.has_hot() || now.duration_since(self.looked) >= pause;
        if found || may_be_due && is_due {
            self.looked = now;
            self.tasks.expire(now);
            let fetched = self.fetch(Some(Duration::ZERO));
            self.pause = match fetched {
                true => (self.pause * 2).min(LOOK_EVERY[1]),
                false => LOOK_EVERY[0],
            };
            found |= fetched;
        }
        let worked = self.tasks.round();
        self.streak = if worked {
            self.streak.saturating_add(1)
        } else {
            0
        };
        worked | found
    }

    /// Sleeps until something happens, unless something is there to do; looks at fds in any case.
    fn sleep(&mut self) -> bool {
        self.tasks.cool_all();
        let timeout = match !self.tasks.has_hot() && self.line.mailbox.can_sleep() {
            true => self
                .tasks
                .deadline()
                .map(|deadline| deadline.saturating_duration_since(Instant::now())),
            false => Some(Duration::ZERO),
        };
        self.fetch(timeout);
        self.looked = Instant::now();
        self.tasks.expire(self.looked);
        true
    }

    /// Takes events to their tasks; whether there were any.
    fn fetch(&mut self, timeout: Option<Duration>) -> bool {
        let mut events = std::mem::take(&mut self.events);
        // An error is EINTR: nothing happened.
        let _ = self.watches.fetch(&mut events, timeout);
        let found = !events.is_empty();
        for event in events.drain(..) {
            // Looked up one by one: a task may end a watch whose event is among these.
            if let Some((task, key)) = self.watches.owner(&event) {
                self.tasks.tell(task, |task| task.event(key));
            }
        }
        self.events = events;
        found
    }

    fn read_mail(&mut self) {
        let mut letters = std::mem::take(&mut self.letters);
        self.line.mailbox.take(&mut letters);
        for letter in letters.drain(..) {
            match letter {
                Letter::Spawn(make) => {
                    let (line, watches) = (&self.line, &self.watches);
                    self.tasks
                        .add(|id| make(Place::new(id, line.clone(), watches.clone())));
                }
                Letter::Wake(task) => self.tasks.tell(task, |task| task.woken()),
                Letter::Quit => self.is_quitting = true,
            }
        }
        self.letters = letters;
    }
}
