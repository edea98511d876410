//! A driver that leaves its rings alone for a while, and one whose device is reset under it.

use super::{BlkDriver, SetupError};

/// What a driver leaves undone; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Requests wait in the driver: the device gets no more.
    pub submissions: bool,
    /// Used entries are not looked at, irqs are not asked for.
    pub completions: bool,
}

impl BlkDriver {
    /// Leaves that undone until the next call. Holding completions alone lets the rings run full.
    /// Programs that wait for their requests go on waiting.
    pub fn hold(&self, hold: Hold) {
        let mut gave_up = false;
        for queue in self.shared_queues() {
            let mut core = queue.core();
            gave_up |= core.set_hold(hold);
            queue.notify(&mut core);
        }
        if gave_up {
            self.end_all();
        }
    }

    /// Requests that the device has now. Takes completions, unless they are held.
    pub fn in_flight(&self) -> usize {
        self.pump_all();
        let queues = self.shared_queues().iter();
        queues
            .map(|queue| usize::from(queue.core().in_flight()))
            .sum()
    }

    /// After a reset was answered, with both submissions and completions held since before it:
    /// the queues anew, their areas to be told to the device again. Once it is live and the hold
    /// ends it gets all requests that it has not answered. After an error: [`BlkDriver::stop`].
    pub fn renew(&self) -> Result<(), SetupError> {
        for queue in self.shared_queues() {
            let mut core = queue.core();
            let renewed = core.renew();
            queue.notify(&mut core);
            renewed?;
        }
        Ok(())
    }
}
