//! The framework's data path (the kernel's part): the IOVA domain with its bounce pages, a
//! driver's own memory, kick and irq lines with the rule for irqs, and the driver's side of virtio-blk.

mod arena;
pub mod blk;
mod dma;
mod domain;
mod irq;
mod line;
mod relay;
mod room;
mod thread;
mod virtqueue;

pub use arena::Arena;
pub use dma::{Buffer, Coherent, Direction, Dma, DmaError, Mapping};
pub use domain::{Domain, DomainStats};
pub use irq::{IrqError, IrqGate};
pub use line::{LineStats, VqLine};
pub use relay::KickRelay;
pub use virtqueue::{RequestError, Used, Virtqueue, VirtqueueError};
