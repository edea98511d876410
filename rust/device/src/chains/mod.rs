//! Virtqueues whose chains are served outside this crate: a [`Handler`] gets them in batches,
//! keeps each as long as it likes, and completes it from any thread.

mod chain;
mod returns;
mod service;

pub use chain::{Ended, Exported, HeldChain, Memory};
pub(crate) use service::ChainProvider;

use std::sync::Arc;

/// What becomes of chains. Called on the queue's worker; a panic breaks the device.
pub trait Handler: Send + Sync {
    /// The chains of one batch of the virtqueue `queue`, at least one. Each is to be completed,
    /// now or later.
    fn handle(&self, queue: u32, chains: Vec<Arc<HeldChain>>);

    /// The queue is being stopped, and waits for the chains that are not completed.
    fn drain(&self, queue: u32);

    /// This many chains were forgotten: dropped without having been completed. They were
    /// completed with nothing written.
    fn forgotten(&self, queue: u32, count: usize);
}
