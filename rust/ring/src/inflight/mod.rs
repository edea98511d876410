//! The record of requests in flight, in the layouts of the vhost-user specification
//! ("Inflight I/O tracking"): what a device that was killed leaves to its successor. Requests
//! complete out of order, so the ring alone does not show what is open.
//!
//! Whoever supplies the memory may write to it too: running queues never read it, and a
//! recovery checks every field.

mod packed;
mod split;

pub(crate) use packed::{OpenPacked, PackedRecord};
pub(crate) use split::SplitRecord;

use crate::RingError;
use crate::shared::Shared;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Offsets both layouts begin with.
const FEATURES: usize = 0;
const VERSION: usize = 8;
const DESC_NUM: usize = 10;

/// The version of both layouts; 0 is a record never written.
const CURRENT: u16 = 1;

/// Whether the record was written before; an error if it was, but not for a queue of `size`.
fn is_written(mem: &Shared, size: u16) -> Result<bool, RingError> {
    match mem.load16(VERSION, Acquire) {
        0 => Ok(false),
        CURRENT if mem.load64(FEATURES, Relaxed) != 0 => {
            Err(RingError::Inflight("unknown features"))
        }
        CURRENT if mem.load16(DESC_NUM, Relaxed) != size => {
            Err(RingError::Inflight("not of this queue's size"))
        }
        CURRENT => Ok(true),
        _ => Err(RingError::Inflight("unknown version")),
    }
}

/// The last store of a first use: until then the record counts as never written.
fn mark_written(mem: &Shared, size: u16) {
    mem.store16(DESC_NUM, size, Relaxed);
    mem.store64(FEATURES, 0, Relaxed);
    mem.store16(VERSION, CURRENT, Release);
}
