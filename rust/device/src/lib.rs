//! The device side's data path: workers that serve virtqueues, virtio-blk requests, and the
//! backends that store the bytes. Nothing here knows Python.
//!
//! A request's way: [`vduse_ring::DeviceQueue`] pops a chain; `blk::parse` makes a request of
//! it, `blk::execute` hands it to the backend's engine, `blk::finish` writes the status byte
//! and names the used length; the queue publishes once a batch.

pub mod backend;
mod blk;
mod buffer;
pub mod chains;
mod command;
mod datapath;
mod events;
mod failures;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handle;
mod irq;
pub mod layers;
mod live;
mod mailbox;
mod pause;
mod pool;
mod publisher;
mod queue;
mod queues;
mod service;
mod slab;
mod stats;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "the tests use more of it"))]
mod testing;
#[cfg(test)]
mod tests;
mod umem;
mod units;

pub use blk::{Disk, Limits};
pub use buffer::Buffer;
pub use datapath::{DataPath, Hookup, NotRunning, QueueSetup, StartError};
pub use events::Event;
pub use mailbox::Completer;
pub use pool::Pool;
pub use stats::{Distributions, QueueStats, Stats};
pub use units::{Extent, Length, Offset, SECTOR_SIZE, Sector};
