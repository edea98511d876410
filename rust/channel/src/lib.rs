//! The device side's half of a channel that the data path uses: resolve an IOTLB miss, inject
//! an irq, put the program's own pages in place of the bounce pages. Implementations: the embedded channel's call socket, and the kernel's device node.

mod abi;
mod call;
mod kernel;
mod outcomes;
mod umem;

pub use call::{Answer, CallSocket, MAX_FDS, MAX_PACKET};
pub use kernel::KernelNode;
pub use outcomes::Counts;
pub use umem::UmemPort;

use rustix::io::Errno;

/// Injects a virtqueue's irq where the channel offers no call fd. Never blocks for long, never
/// runs driver code on this stack.
pub trait IrqSink: Send + Sync {
    /// `VDUSE_VQ_INJECT_IRQ`.
    fn inject_irq(&self, index: u32) -> Result<(), Errno>;
}
