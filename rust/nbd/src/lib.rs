//! NBD's transmission phase (NBD protocol document, "Transmission phase") on the queues of a
//! virtio-blk driver. The handshake is made elsewhere.
//!
//! A connection is a task on the worker of its queue. One system call takes many requests, they
//! go to the driver together, and the replies that are ready leave together. Where the device's
//! queue lies on the same worker, a request runs to completion there.
//!
//! The client is not trusted: what it can make a connection hold is bounded, and what it does
//! wrong ends its own connection. All answers of a request with an error leave the disk as if it
//! had not been made, but those that the device itself gives.

mod allocation;
mod block;
mod check;
mod connection;
mod export;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod inbox;
mod ledger;
mod outbox;
mod requests;
mod task;
#[cfg(test)]
mod tests;

use vduse_nbdwire as wire;

pub use allocation::{Allocation, Part, Question};
pub use check::MAX_PAYLOAD;
pub use connection::Options;
pub use export::{AttachError, Export};
pub use ledger::Stats;
