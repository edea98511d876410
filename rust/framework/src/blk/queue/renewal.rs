//! A queue whose device is reset with requests in flight: it starts afresh, and what the device
//! has not answered goes to it again.

use super::{QueueCore, Stall};
use crate::blk::{Hold, SetupError};

/// A part that is to be put on the ring once more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    job: u32,
    start: u64,
    bytes: u64,
}

impl QueueCore {
    /// What is left undone from now on.
    pub(in crate::blk) fn set_hold(&mut self, hold: Hold) {
        if hold.submissions {
            // What is staged counts as in flight: the device is to know of it.
            self.publish();
        }
        self.hold = hold;
    }

    /// After a reset was answered, under a hold: rings and slots anew, in other memory maybe.
    /// What was used before the reset is taken, all else is put on the ring again when the hold
    /// ends. After an error the queue is of no more use.
    pub(in crate::blk) fn renew(&mut self) -> Result<(), SetupError> {
        self.take_used();
        self.release();
        for part in self.parts.iter_mut().filter_map(Option::take) {
            if let Some(mapping) = part.mapping {
                // Mapped anew when it is put on the ring; nothing was answered, nor is copied.
                let _ = self.dma.unmap(mapping, false);
            }
            self.again.push_back(Again {
                job: part.job,
                start: part.start,
                bytes: part.bytes,
            });
        }
        self.staged = 0;
        self.free_memory();
        match QueueCore::build(&self.dma, &self.layout, &mut self.memory) {
            Ok((ring, slots)) => {
                (self.ring, self.slots) = (ring, slots);
                self.areas = [
                    self.memory[0].iova,
                    self.memory[1].iova,
                    self.memory[2].iova,
                ];
                Ok(())
            }
            Err(error) => {
                self.free_memory();
                Err(error)
            }
        }
    }

    /// Puts what the former ring had on this one; false while it is full.
    pub(super) fn issue_again(&mut self) -> bool {
        while let Some(&Again { job, start, bytes }) = self.again.front() {
            match self.put(job, start, bytes) {
                Ok(()) => {}
                Err(Stall::Full) => return false,
                // Its client has gone, or its memory.
                Err(Stall::Failed(errno)) => self.part_ended(job, Some(errno)),
            }
            self.again.pop_front();
        }
        true
    }

    fn take_used(&mut self) {
        while self.ending.errno().is_none() {
            match self.ring.pop_used() {
                Ok(Some((slot, _written))) => self.complete(slot),
                Ok(None) => return,
                Err(error) => self.give_up(error.to_string()),
            }
        }
    }
}
