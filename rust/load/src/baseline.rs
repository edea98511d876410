//! What a load is measured against: one thread that copies the same amount between as much
//! memory.

use crate::report::{Clocks, Report};
use crate::{Buffers, Direction};
use std::ptr::NonNull;

/// The buffers of a load, and what stands for bounce pages or a disk in memory.
pub struct Baseline {
    driver: Buffers,
    other: Buffers,
}

/// Block after block, again from the first after the last.
fn nth(buffers: &Buffers, request: u64) -> NonNull<u8> {
    let blocks = (buffers.len() / buffers.block_size()) as u64;
    buffers.block((request % blocks) as u32)
}

impl Baseline {
    /// `blocks` buffers of `block_size` bytes, and `others` on the other side.
    pub fn new(blocks: u32, others: u32, block_size: u32) -> std::io::Result<Baseline> {
        Ok(Baseline {
            driver: Buffers::new(blocks, block_size)?,
            other: Buffers::new(others, block_size)?,
        })
    }

    /// Copies `requests` blocks one after the other, on either side in turn, the way a request's
    /// data goes. There are no latencies in the report.
    pub fn copy(&mut self, requests: u64, direction: Direction) -> Report {
        let clocks = Clocks::start();
        for request in 0..requests {
            let (driver, other) = (nth(&self.driver, request), nth(&self.other, request));
            let (from, to) = match direction {
                Direction::Read => (other, driver),
                Direction::Write => (driver, other),
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
