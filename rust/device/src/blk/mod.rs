//! virtio-blk requests (virtio 1.3, section 5.2.6) in three steps, three types: [`parse`]
//! makes a [`Request`] of a chain, [`Execution`] carries it out, and only [`Finish`] writes
//! the status byte and says the used length.

mod disk;
mod execute;
mod finish;
mod limits;
mod parse;
mod service;
#[cfg(test)]
mod tests;
mod wire;

pub use disk::Disk;
pub(crate) use disk::DiskProvider;
pub(crate) use execute::{Execution, Progress, Traffic};
pub(crate) use finish::Finish;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use finish::Used;
pub use limits::Limits;
pub(crate) use limits::Rules;
pub(crate) use parse::{Parsed, Request, parse};
pub(crate) use wire::ID_BYTES;
