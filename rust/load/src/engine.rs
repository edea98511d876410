//! What a load needs of a driver.

use rustix::io::Errno;
use std::time::Duration;

use crate::Buffers;

/// The direction of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Disk to memory.
    Read,
    /// Memory to disk.
    Write,
}

/// The driver cannot go on; single requests that fail are no such error.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A system call, or what the driver says in place of one.
    #[error("{0}: {1}")]
    Os(&'static str, Errno),
    /// In the words of a driver that has no errno.
    #[error("{0}: {1}")]
    Driver(&'static str, String),
}

/// A request found completed: its block, and how it ended.
pub type Done = (u32, Result<(), Errno>);

/// A virtio-blk driver under load. A request in flight is known by the block of
/// [`Engine::buffers`] that it reads into or writes from.
pub trait Engine {
    /// Bytes of the disk.
    fn capacity(&self) -> u64;

    /// The data buffers.
    fn buffers(&mut self) -> &mut Buffers;

    /// Hands a request to the driver; false if its queue is full now.
    fn submit(
        &mut self,
        block: u32,
        direction: Direction,
        offset: u64,
    ) -> Result<bool, EngineError>;

    /// Tells the device of everything submitted, where it wants to be told.
    fn kick(&mut self) -> Result<(), EngineError>;

    /// Appends what has completed to `done`, without waiting.
    fn reap(&mut self, done: &mut Vec<Done>) -> Result<(), EngineError>;

    /// Waits until something may have completed, or `timeout` has passed.
    fn wait(&mut self, timeout: Duration) -> Result<(), EngineError>;
}
