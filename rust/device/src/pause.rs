//! A pause of a device: its queues take nothing, nothing is in flight, and what served them can be
//! exchanged. Requests that the driver makes meanwhile wait in its rings.

use crate::backend;
use crate::command::{Command, Done};
use crate::datapath::DataPath;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

/// How far a queue's pause is.
pub(crate) enum Pause {
    /// It serves.
    No,
    /// It takes nothing more; who waits for the end of what is in flight.
    Begun(Vec<Done>),
    /// It has let go of what served it.
    Complete,
}

impl Pause {
    /// Begins one, if there is none. `done` is dropped once it is complete.
    pub(crate) fn begin(&mut self, done: Done) {
        match self {
            Pause::No => *self = Pause::Begun(vec![done]),
            Pause::Begun(waiting) => waiting.push(done),
            Pause::Complete => {}
        }
    }
}

impl DataPath {
    /// Pauses all queues, those that are started meanwhile, too; true once nothing is in flight
    /// and no engine is attached. False: requests were still in flight after `timeout`; then all
    /// go on as before, or the device is broken where that cannot be.
    pub fn pause(&self, timeout: Duration) -> bool {
        self.device.set_paused(true);
        let device = self.device.id;
        let is_paused = self.ask_all(timeout, |done| Command::Pause { device, done });
        if !is_paused {
            // Not waited for: a worker may be what hangs.
            drop(self.go_on());
        }
        is_paused
    }

    /// Ends the pause: each queue is served by what its provider attaches now. An error: of a queue
    /// that goes on waiting; to be paused again, or reset.
    pub fn resume(&self) -> Result<(), backend::Error> {
        // Ends when all workers have done it (or have ended).
        let errors: Vec<backend::Error> = self.go_on().iter().collect();
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Tells the workers; their errors, until all have done it.
    fn go_on(&self) -> Receiver<backend::Error> {
        self.device.set_paused(false);
        let device = self.device.id;
        let (failed, errors) = mpsc::channel();
        self.send_all(|| Command::Resume {
            device,
            failed: failed.clone(),
        });
        errors
    }
}
