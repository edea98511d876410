//! What a load through bounce pages is measured against: one thread that copies the same
//! amount between as much memory.

use crate::report::{Clocks, Report};
use crate::{Buffers, Direction};

/// Two sets of equal buffers.
pub struct Baseline {
    driver: Buffers,
    bounce: Buffers,
}

impl Baseline {
    /// `blocks` of `block_size` bytes on either side.
    pub fn new(blocks: u32, block_size: u32) -> std::io::Result<Baseline> {
        Ok(Baseline {
            driver: Buffers::new(blocks, block_size)?,
            bounce: Buffers::new(blocks, block_size)?,
        })
    }

    /// Copies `requests` blocks one after the other, in turn, the way a request's data goes.
    /// There are no latencies in the report.
    pub fn copy(&mut self, requests: u64, direction: Direction) -> Report {
        let blocks = (self.driver.len() / self.driver.block_size()) as u64;
        let clocks = Clocks::start();
        for request in 0..requests {
            let block = (request % blocks) as u32;
            let (driver, bounce) = (self.driver.block(block), self.bounce.block(block));
            let (from, to) = match direction {
                Direction::Read => (bounce, driver),
                Direction::Write => (driver, bounce),
            };
            // SAFETY: two blocks of equal size in different mappings, both ours alone.
            unsafe { from.copy_to_nonoverlapping(to, self.driver.block_size()) };
        }
        let mut report = Report {
            requests,
            bytes: requests * self.driver.block_size() as u64,
            ..Report::default()
        };
        clocks.stop(&mut report);
        report
    }
}
